"""Scores -> probabilities -> answers, in the shape in which OpenAI's clients read them. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .calibration import Trial
from .questions import ChoiceQuestion, PredicateQuestion, Question
from .scoring import OptionScores

__all__ = ["answer_of", "choice_among", "competing_logits", "probabilities_of"]


def competing_logits(scores: OptionScores) -> np.ndarray:
    """`[options]`; of a single one: its logit, and that of its absence."""
    return np.append(scores.logits, 0.0) if len(scores.scores) == 1 else scores.logits


def probabilities_of(scores: OptionScores, temperature: float = 1.0) -> list[float]:
    """How probable each option is; the sum is 1. Of a single one: how probable it is against its absence.

    temperature: 1: as the model has it; above: nearer to one another.
    """
    return Trial(competing_logits(scores), 0).chances(temperature)[: len(scores.scores)].tolist()


def answer_of(question: Question, probabilities: Sequence[float]) -> dict[str, Any]:
    """The answer to a question; probabilities: of its options in their order, of a predicate true first.

    confidence: the probability of the most probable option; score: the mean of the levels' numbers from 0.
    """
    head = {"type": question.type, "name": question.name}
    if isinstance(question, PredicateQuestion):
        return {**head, "probability": probabilities[0]}
    if isinstance(question, ChoiceQuestion):
        return {**head, **choice_among([one.value for one in question.choices], probabilities)}
    levels = [
        {"label": level.label, "value": value, "probability": chance}
        for value, (level, chance) in enumerate(zip(question.levels, probabilities, strict=True))
    ]
    score = sum(value * chance for value, chance in enumerate(probabilities))
    return {**head, "score": score, "confidence": max(probabilities), "probabilities": levels}


def choice_among(values: Sequence[str | bool], probabilities: Sequence[float]) -> dict[str, Any]:
    """The most probable of some values, the first of equal ones."""
    best = max(range(len(values)), key=lambda place: probabilities[place])
    chances = [{"value": value, "probability": chance} for value, chance in zip(values, probabilities, strict=True)]
    return {"choice": values[best], "confidence": probabilities[best], "probabilities": chances}
