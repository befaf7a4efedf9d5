"""Scores of many texts against as many references, over characters, as CPM-2's fine-tuning counts them.

Each is in 0..100. Dist-n leaves out the last n-gram of every text; ROUGE-1 and -2 are the recall of sets, over one text
that all texts are joined to; ROUGE-L is an F-score that weighs recall by 1.2; BLEU-4 is nltk's, of the whole corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from .bleu import bleu4_corpus_method3
from .rouge import common_length
from .text import mean

Texts = Sequence[Sequence[str]]

_RECALL_WEIGHT = 1.2
_NEVER_ZERO = 1e-10


def corpus_scores(predictions: Texts, references: Texts) -> dict[str, float]:
    """All scores of the original, by its names; a text is a sequence of characters."""
    pairs = list(zip(predictions, references, strict=True))
    return {
        "dist-3": distinct_but_last(predictions, 3),
        "dist-4": distinct_but_last(predictions, 4),
        "bleu-4": bleu4_corpus_method3(predictions, references),
        "f1": 100 * mean([overlap_f1(*pair) for pair in pairs]),
        "rouge-l": 100 * mean([rouge_l_recall(*pair) for pair in pairs]),
        "rouge-1": rouge_n_joined(predictions, references, 1),
        "rouge-2": rouge_n_joined(predictions, references, 2),
    }


def distinct(texts: Texts, order: int) -> float:
    """Dist-n (Li et al. 2016): the share of different n-grams among all of them."""
    return _share_of_different([gram for text in texts for gram in _ngrams(text, order)])


def distinct_but_last(texts: Texts, order: int) -> float:
    """`distinct` without the last n-gram of each text."""
    # kept (cpm2_metrics): the original stops one too early.
    return _share_of_different([gram for text in texts for gram in _ngrams(text, order)[:-1]])


def overlap_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 in 0..1 of the characters that both have, each as often as the rarer side has it."""
    shared = (Counter(prediction) & Counter(reference)).total()
    precision, recall = _precision_recall(shared, prediction, reference)
    return 2 * precision * recall / max(precision + recall, _NEVER_ZERO)


def rouge_l_recall(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L in 0..1, with recall weighed by 1.2; 0 when nothing is shared."""
    precision, recall = _precision_recall(common_length(prediction, reference), prediction, reference)
    square = _RECALL_WEIGHT**2
    return (1 + square) * precision * recall / (recall + square * precision) if precision else 0.0


def rouge_n_joined(predictions: Texts, references: Texts, order: int) -> float:
    """Recall of the set of n-grams; all texts count as one, so that n-grams reach over their borders."""
    found, wanted = (set(_ngrams(list(chain.from_iterable(texts)), order)) for texts in (predictions, references))
    return 100 * len(found & wanted) / len(wanted) if wanted else 0.0


def _precision_recall(shared: int, prediction: Sequence[str], reference: Sequence[str]) -> tuple[float, float]:
    return shared / max(len(prediction), _NEVER_ZERO), shared / max(len(reference), _NEVER_ZERO)


def _ngrams(text: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[start:] for start in range(order)), strict=False))


def _share_of_different(grams: Sequence[tuple[str, ...]]) -> float:
    return 100 * len(set(grams)) / len(grams) if grams else 0.0
