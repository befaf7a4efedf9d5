from __future__ import annotations

import itertools

import pytest

from hanlin.evaluation.metrics.text import character_error, edit_distance, is_match, mean, normalise, share


def plain_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def test_edit_distance_is_levenshteins():
    words = ["".join(word) for size in range(5) for word in itertools.product("ab你", repeat=size)][::3]
    for first, second in itertools.product(words, words):
        assert edit_distance(first, second) == plain_distance(first, second), (first, second)


def test_edit_distance_of_long_texts():
    first, second = "春眠不觉晓，处处闻啼鸟。" * 12, "春眠不知晓处处闻啼鸟！" * 13
    assert edit_distance(first, second) == plain_distance(first, second)


@pytest.mark.parametrize(
    ("answer", "gold", "match"),
    [
        ("好", "好", True),
        (" ＡＢ  c\n", "AB c", True),
        ("好", "坏", False),
        (None, "好", False),
        (None, "", True),
        ("a b", "ab", False),
    ],
)
def test_match_after_normalisation(answer: str | None, gold: str, match: bool):
    assert is_match(answer, gold) is match


def test_normalise_keeps_chinese_punctuation_apart():
    assert normalise("　你好，　世界。") == "你好, 世界。"


def test_character_error_is_over_all_texts_together():
    assert character_error(["ab", None], ["ac", "xy"]) == pytest.approx(3 / 4)
    assert character_error([""], [""]) == 0
    assert character_error(["x"], [""]) == 1


def test_shares_and_means_of_nothing_are_zero():
    assert share([True, False, False, True]) == 0.5
    assert share([]) == mean([]) == 0
