"""Counted baselines: probabilities sum to one, and a small case by hand."""

from __future__ import annotations

import math

import pytest

from hanlin.evaluation.ngrams import CharacterModel

TEXTS = ["春眠不觉晓", "春眠处处闻", "不觉春眠", "a"]


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_shares_of_all_characters_sum_to_one(order: int) -> None:
    model = CharacterModel(TEXTS, order)
    known = sorted({character for text in TEXTS for character in text})
    for context in ("", "春", "春眠", "不觉春眠", "未见"):
        shares = [list(model._shares(model._padded(context + end)))[len(context)] for end in [*known, "?"]]
        end_of_text = list(model._shares(model._padded(context)))[len(context)]
        assert math.fsum([*shares, end_of_text]) == pytest.approx(1)


def test_a_unigram_by_hand() -> None:
    # a 3, b 1, end 2; discount 1 / (1 + 2); four kinds with the unknown one.
    model = CharacterModel(["aa", "ab"], 1)
    rest = (1 / 3 * 3 / 6) / 4
    shares = {"a": (3 - 1 / 3) / 6 + rest, "\x03": (2 - 1 / 3) / 6 + rest}
    assert model.perplexity(["a"]) == pytest.approx((shares["a"] * shares["\x03"]) ** (-1 / 2))


def test_what_was_seen_often_is_told_better_with_a_longer_context() -> None:
    texts = ["床前明月光疑是地上霜"] * 3
    unigram, fivegram = (CharacterModel(texts, order).perplexity(texts) for order in (1, 5))
    assert fivegram < 1.5 < unigram


@pytest.mark.parametrize("order", [1, 2, 5])
def test_it_goes_on_in_the_likeliest_way_until_the_end(order: int) -> None:
    model = CharacterModel(["床前明月光"] * 9 + ["床前床"], order)
    expected = {1: "床床", 2: "前明", 5: "前明"}[order]
    assert model.goes_on("床", 2) == expected
    assert model.goes_on("床前明", 9) == ("床" * 9 if order == 1 else "月光")
