"""Scores of many texts against as many references, over characters, in their standard forms; in 0..100.

Beside `corpus.py`, whose forms are CPM-2's: here Dist-n counts every n-gram, ROUGE is the mean F-score of the pairs,
BLEU-4 is not smoothed. F1 is the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

from .bleu import bleu4_corpus, num_shared
from .corpus import Texts, distinct, overlap_f1
from .rouge import f_score, rouge_l
from .text import mean

DISTINCT_ORDERS = (1, 2, 3, 4)


def standard_scores(predictions: Texts, references: Texts) -> dict[str, float]:
    pairs = list(zip(predictions, references, strict=True))
    return {
        **{f"dist-{order}": distinct(predictions, order) for order in DISTINCT_ORDERS},
        "bleu-4": bleu4_corpus(predictions, references),
        "f1": 100 * mean([overlap_f1(*pair) for pair in pairs]),
        "rouge-1": mean([rouge_n(*pair, 1) for pair in pairs]),
        "rouge-2": mean([rouge_n(*pair, 2) for pair in pairs]),
        "rouge-l": mean([rouge_l(*pair) for pair in pairs]),
    }


def rouge_n(prediction: Sequence[str], reference: Sequence[str], order: int) -> float:
    """ROUGE-N (Lin 2004): the F-score of the n-grams, each as often as the rarer side has it."""
    sizes = (max(0, len(text) - order + 1) for text in (prediction, reference))
    return f_score(num_shared(prediction, reference, order), *sizes)
