"""The scores of a text against a text that a recipe asks for by name; each number's name says its variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .bleu import bleu4_characters_method3
from .rouge import rouge_jieba_sets
from .text import mean

Scores = dict[str, float]


def _bleu4(prediction: str, reference: str) -> Scores:
    return {"bleu-4 characters method3": bleu4_characters_method3(prediction, reference)}


def _rouge(prediction: str, reference: str) -> Scores:
    return {f"{name} jieba sets": score for name, score in rouge_jieba_sets(prediction, reference).items()}


NAMED: Mapping[str, Callable[[str, str], Scores]] = {"bleu4": _bleu4, "rouge": _rouge}
"""Prediction, reference -> numbers in 0..100."""


def score_texts(names: Sequence[str], predictions: Sequence[str | None], references: Sequence[str | None]) -> Scores:
    """The named scores of one record: the mean over its answers; an answer that was not reached scores 0."""
    pairs = [(found or "", wanted or "") for found, wanted in zip(predictions, references, strict=True)]
    return {
        variant: mean([NAMED[name](*pair)[variant] for pair in pairs])
        for name in names
        for variant in NAMED[name]("", "")
    }
