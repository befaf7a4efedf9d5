"""A Chinese text cut into words by jieba, with blanks and line breaks as visible letters: how all CPM models begin.

The vocabularies of CPM-1 and CPM-2 know no white space: a blank is U+2582 and a line break U+2583 in them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hanlin.tokens.batch_jieba import batch_segmenter

BLANK, LINE_BREAK = "\u2582", "\u2583"

_WORTHWHILE = 20_000
"""Characters at once, the first of many, for which the batch segmenter is made; that takes a second or two."""

_TO_VISIBLE = {ord(" "): ord(BLANK), ord("\n"): ord(LINE_BREAK)}
_TO_BLANK = str.maketrans({BLANK: " ", LINE_BREAK: "\n"})


def cut_segments(text: str) -> list[str]:
    """The words of a text (default dictionary, hidden Markov model on) with visible white space."""
    import jieba  # loads a dictionary for a second, so only when texts are really cut

    jieba.setLogLevel(logging.WARNING)  # it reports that loading otherwise
    return [segment.translate(_TO_VISIBLE) for segment in jieba.cut(text)]


def join_segments(texts: Sequence[str]) -> list[str]:
    """For each text its `cut_segments` with a blank between, which no segment holds; many texts at once are faster."""
    is_made = batch_segmenter.cache_info().currsize > 0
    if not is_made and sum(map(len, texts)) < _WORTHWHILE:
        return [" ".join(cut_segments(text)) for text in texts]
    return batch_segmenter().join(texts, _TO_VISIBLE)


def restore_blanks(text: str) -> str:
    """Turn the visible letters back into white space."""
    return text.translate(_TO_BLANK)
