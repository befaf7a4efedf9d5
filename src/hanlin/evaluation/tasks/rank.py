"""Ranking: score the competitors of a record by the logit of one label, and put the best one first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hanlin.core.batch import IGNORED, Sample
from hanlin.evaluation.metrics.text import mean, share
from hanlin.evaluation.scorable import ranking_processor
from hanlin.generate.engine import Engine, batches_of, naming
from hanlin.generate.sampling import check_numbers
from hanlin.models.family import RankedExample
from hanlin.recipe.settings import GenerateSettings

from .task import Numbered, Prediction, Task


def predict(
    engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int
) -> Iterator[tuple[int, Prediction]]:
    """Give {"gold": the better one's name or None, "answer": the winner's, "rank": of the gold one, "scores": by name,
    best first}; among equals the earlier one is the better.

    Raises: ConfigError when the family's records are not ranked.
    """
    del seed
    processor = ranking_processor(engine.processor)

    def score(pair: tuple[int, Any]) -> tuple[int, Prediction]:
        number, record = pair
        with naming(number):
            ranked_example = processor.ranked_example(record)
        parts = batches_of(ranked_example.samples, options.batch_size)
        scores = [score for part in parts for score in _scores(engine, part)]
        return number, _row(ranked_example, dict(zip(ranked_example.names, scores, strict=True)))

    return engine.shared(numbered, score)


def summarise(rows: Sequence[Prediction]) -> dict[str, float]:
    """rank_accuracy: share of records whose better competitor won; mrr: mean of 1 / its rank. Only of records that say
    which one that is; the others are in the predictions file.
    """
    ranks = [row["rank"] for row in rows if row["rank"] is not None]
    if not ranks:
        return {"ranked": len(rows)}
    return {"rank_accuracy": share([rank == 1 for rank in ranks]), "mrr": mean([1 / rank for rank in ranks])}


def _scores(engine: Engine, samples: Sequence[Sample]) -> list[float]:
    batch = engine.processor.collate([[sample] for sample in samples], max(sample.length for sample in samples))
    batch = batch.to(engine.device)
    with engine.inference():
        logits = engine.model(**batch.inputs)
    labelled = batch.labels != IGNORED
    return check_numbers(logits[labelled].gather(-1, batch.labels[labelled][:, None])[:, 0]).tolist()


def _row(ranked_example: RankedExample, scores: dict[str, float]) -> Prediction:
    # kept (the original's accuracy counts a tie as right): sorting is stable, and the better one comes first.
    ranking = sorted(scores, key=lambda name: -scores[name])
    rank = None if ranked_example.best is None else ranking.index(ranked_example.best) + 1
    return {
        "gold": ranked_example.best,
        "answer": ranking[0],
        "rank": rank,
        "scores": {name: scores[name] for name in ranking},
    }


TASK = Task(predict, summarise)
