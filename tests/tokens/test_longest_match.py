from __future__ import annotations

import random

import pytest

from hanlin.core.errors import DataError
from hanlin.tokens.longest_match import LongestMatch


def cut_by_trying(words: set[str], text: str) -> list[str]:
    """The definition: at each place the longest word; characters without one join a run."""
    pieces: list[str] = []
    place, was_known = 0, True
    while place < len(text):
        word = next((text[place:end] for end in range(len(text), place, -1) if text[place:end] in words), "")
        if word or was_known:
            pieces.append(word or text[place])
        else:
            pieces[-1] += text[place]
        was_known = bool(word)
        place += len(word) or 1
    return pieces


def test_longest_word_wins_and_unknown_characters_form_runs() -> None:
    match = LongestMatch(["今天", "今", "天气", "今天天"])
    assert match.cut("今天天气😀é今x天气") == ["今天天", "气😀é", "今", "x", "天气"]
    assert match.cut("") == []
    assert match.cut("😀") == ["😀"]


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_cut_as_the_definition_says(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = "ab今天😀\n"
    words = {"".join(rng.choices(alphabet, k=rng.randint(1, 4))) for _ in range(12)}
    match = LongestMatch(sorted(words))
    for _ in range(50):
        text = "".join(rng.choices(alphabet + "é界", k=rng.randint(0, 30)))
        assert match.cut(text) == cut_by_trying(words, text)


def test_half_a_character_is_named() -> None:
    with pytest.raises(DataError, match="character 3 is half a character"):
        LongestMatch(["a", "b"]).cut("ab\ud83d")
