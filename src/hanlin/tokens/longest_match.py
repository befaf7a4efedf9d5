"""Cut a text into the longest words of a vocabulary, from the left.

An Aho-Corasick automaton (Rust) does the search in one pass. It is asked for the words themselves, not for offsets,
so that nothing here depends on how it counts characters.
"""

from __future__ import annotations

from collections.abc import Iterable

from ahocorasick_rs import AhoCorasick, MatchKind

from hanlin.core.errors import DataError


class LongestMatch:
    """A vocabulary that texts are cut by; there is no limit on the length of a word."""

    def __init__(self, words: Iterable[str]) -> None:
        self._automaton = AhoCorasick(list(words), MatchKind.LeftmostLongest, store_patterns=True)

    def cut(self, text: str) -> list[str]:
        """The pieces of `text`; each is a word, or a whole run of characters at which no word begins.

        Raises: DataError for half a character.
        """
        try:
            words = self._automaton.find_matches_as_strings(text)
        except UnicodeEncodeError as error:
            raise DataError(f"character {error.start + 1} is half a character (a lone surrogate); remove it") from None
        return words if "".join(words) == text else _with_gaps(text, words)


def _with_gaps(text: str, words: list[str]) -> list[str]:
    pieces, end = [], 0
    for word in words:
        # The first occurrence is the match: an earlier one would have been found by the search.
        start = text.index(word, end)
        if start > end:
            pieces.append(text[end:start])
        pieces.append(word)
        end = start + len(word)
    if end < len(text):
        pieces.append(text[end:])
    return pieces
