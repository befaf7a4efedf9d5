"""ROUGE-1, ROUGE-2 and ROUGE-L of one prediction over words, as ChatGLM2's evaluation counts them.

The words are jieba's (default dictionary, HMM on). As in rouge_chinese 1.0.3, ROUGE-1 and -2 compare sets: an n-gram
counts once however often it occurs. ROUGE-L compares the whole texts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

_NEVER_ZERO = 1e-8  # rouge_chinese's, in the denominator of the F-score
# Where rouge_chinese begins a new line, between the two groups; in this order.
_SENTENCE_ENDS = [
    re.compile(rule)
    for rule in (r"([。！？?])([^”’])", r"(\.{6})([^”’])", r"(…{2})([^”’])", r"([。！？?][”’])([^，。！？?])")
]


def rouge_jieba_sets(prediction: str, reference: str) -> dict[str, float]:
    """F-scores in 0..100 under "rouge-1", "rouge-2" and "rouge-l"; 0 for an empty text."""
    words, expected = cut_words(prediction), cut_words(reference)
    return {
        "rouge-1": rouge_n(words, expected, 1),
        "rouge-2": rouge_n(words, expected, 2),
        "rouge-l": rouge_l(words, expected),
    }


def cut_words(text: str) -> list[str]:
    """jieba's words; white space is none, but for a sentence that is nothing else."""
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it reports the loading of its dictionary otherwise
    joined = " ".join(jieba.cut(text))
    for rule in _SENTENCE_ENDS:
        joined = rule.sub(r"\1\n\2", joined)
    # kept: a line of blanks counts as one empty word, as in rouge_chinese ("。" before a line break makes one).
    return [word for line in joined.rstrip().split("\n") if line for word in line.split() or [""]]


def rouge_n(words: Sequence[str], expected: Sequence[str], order: int) -> float:
    """The F-score of the sets of n-grams, in 0..100."""
    found, wanted = _ngrams(words, order), _ngrams(expected, order)
    return f_score(len(found & wanted), len(found), len(wanted))


def rouge_l(words: Sequence[str], expected: Sequence[str]) -> float:
    """The F-score of the longest common subsequence, in 0..100."""
    return f_score(common_length(words, expected), len(words), len(expected))


def common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004): bit j of `row` is 0 where taking right[j] made the subsequence longer.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(right):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(right)) - 1
    row = full
    for word in left:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(right) - row.bit_count()


def _ngrams(words: Sequence[str], order: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(order)), strict=False))


def f_score(shared: int, found: int, wanted: int) -> float:
    precision = shared / found if found else 0.0
    recall = shared / wanted if wanted else 0.0
    return 100 * 2 * precision * recall / (precision + recall + _NEVER_ZERO)
