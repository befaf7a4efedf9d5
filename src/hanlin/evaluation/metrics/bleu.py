"""BLEU-4 of one prediction over characters, as ChatGLM2's evaluation counts it (nltk `sentence_bleu`, method3).

A precision of zero is replaced by 1 / (2^k * its denominator) for the k-th zero; a denominator is at least 1, so that
the exact match of a single character scores 35.36, not 100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = (1, 2, 3, 4)


def bleu4_characters_method3(prediction: str, reference: str) -> float:
    """BLEU-4 in 0..100 over the characters of the texts, spaces included; 0 for an empty prediction."""
    return bleu4_method3(list(prediction), list(reference))


def bleu4_method3(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU-4 in 0..100 of tokens against one reference; 0 when no token is shared."""
    return bleu4_corpus_method3([prediction], [reference])


def bleu4_corpus_method3(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 in 0..100 of all predictions together, each with one reference (nltk `corpus_bleu`, method3)."""
    matches = _corpus_matches(predictions, references)
    if matches[0] == 0:
        return 0.0
    possible = [sum(max(1, len(prediction) - order + 1) for prediction in predictions) for order in ORDERS]
    return _combined(_smoothed(matches, possible), predictions, references)


def bleu4_corpus(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 in 0..100 of all predictions together (Papineni et al. 2002), not smoothed: 0 if an order has no match."""
    matches = _corpus_matches(predictions, references)
    if 0 in matches:
        return 0.0
    possible = [sum(max(0, len(prediction) - order + 1) for prediction in predictions) for order in ORDERS]
    precisions = [match / most for match, most in zip(matches, possible, strict=True)]
    return _combined(precisions, predictions, references)


def _corpus_matches(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[int]:
    pairs = list(zip(predictions, references, strict=True))
    return [sum(num_shared(*pair, order) for pair in pairs) for order in ORDERS]


def _combined(
    precisions: Sequence[float], predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> float:
    mean = math.fsum(map(math.log, precisions)) / len(ORDERS)
    brevity = min(0.0, 1 - sum(map(len, references)) / sum(map(len, predictions)))
    return 100 * math.exp(brevity + mean)


def num_shared(prediction: Sequence[str], reference: Sequence[str], order: int) -> int:
    """n-grams of the prediction that the reference has, each at most as often as there."""
    return (_ngrams(prediction, order) & _ngrams(reference, order)).total()


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _smoothed(matches: Sequence[int], possible: Sequence[int]) -> list[float]:
    precisions, zeros = [], 0
    for match, most in zip(matches, possible, strict=True):
        zeros += match == 0
        precisions.append(match / most if match else 1 / (2**zeros * most))
    return precisions
