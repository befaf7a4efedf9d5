"""Labels: read each record's text, and compare what the head for labels says with the record's own label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hanlin.core.batch import IGNORED, Sample
from hanlin.evaluation.metrics.text import mean, share
from hanlin.evaluation.scorable import encode, label_processor
from hanlin.generate.engine import Engine, naming
from hanlin.generate.sampling import check_numbers
from hanlin.models.family import PredictsLabels
from hanlin.recipe.settings import GenerateSettings

from .loss import by_batches
from .task import Numbered, Prediction, Task


def predict(
    engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int
) -> Iterator[tuple[int, Prediction]]:
    """Give {"gold": label, "answer": label, "correct": bool, "scores": probability of each label}; of several labels at
    once "gold" and "answer" (those above 0.5) are lists; of numbers {"gold": {label: number}, "answer": the same,
    "squared_error": mean over the labels}.

    Raises: ConfigError when the family's model has no head for labels.
    """
    del seed
    processor = label_processor(engine.processor)
    golds: dict[int, list[float]] = {}

    def encoded() -> Iterator[tuple[int, Sample]]:
        for number, record in numbered:
            with naming(number):
                golds[number] = processor.targets(record)
                yield number, encode(engine.processor, record, engine.max_length)

    for number, scores in by_batches(engine, encoded(), options.batch_size, batch_scores):
        yield number, _row(processor, golds[number], scores)


def summarise(rows: Sequence[Prediction]) -> dict[str, float]:
    """accuracy: share of records whose label, or whole list of labels, is right; squared_error: mean over records."""
    if "squared_error" in rows[0]:
        return {"squared_error": mean([row["squared_error"] for row in rows])}
    return {"accuracy": share([row["correct"] for row in rows])}


def batch_scores(engine: Engine, named: Sequence[tuple[Any, Sample]]) -> list[tuple[Any, torch.Tensor]]:
    """(name, what the head says of each label) of each sample of a batch, the longest one first."""
    batch = engine.processor.collate([[sample] for _, sample in named], named[0][1].length).to(engine.device)
    with engine.inference():
        scores = check_numbers(engine.model(**batch.inputs)[batch.labels != IGNORED])
    return list(zip([number for number, _ in named], scores.cpu(), strict=True))


def _row(processor: PredictsLabels, targets: Sequence[float], scores: torch.Tensor) -> Prediction:
    names = processor.labels
    if processor.label_kind == "number":
        answer = scores.tolist()
        error = mean([(value - target) ** 2 for value, target in zip(answer, targets, strict=True)])
        return {"gold": _named(names, targets), "answer": _named(names, answer), "squared_error": error}
    if processor.label_kind == "one":
        gold: Any = names[targets.index(1)]
        answer: Any = names[int(scores.argmax())]
        chances = scores.softmax(-1).tolist()
    else:
        chances = scores.sigmoid().tolist()
        gold = [name for name, target in zip(names, targets, strict=True) if target]
        answer = [name for name, chance in zip(names, chances, strict=True) if chance > 0.5]
    return {"gold": gold, "answer": answer, "correct": answer == gold, "scores": _named(names, chances)}


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, values, strict=True))


TASK = Task(predict, summarise)
