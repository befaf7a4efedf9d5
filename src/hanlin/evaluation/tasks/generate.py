"""Exact match: write the answers and compare each with the gold one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hanlin.evaluation.metrics.text import character_error, is_match, share
from hanlin.generate.engine import Engine
from hanlin.recipe.settings import GenerateSettings

from .task import Numbered, Prediction, Task


def predict(
    engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int
) -> Iterator[tuple[int, Prediction]]:
    """Yield {"gold": texts, "answer": texts, "correct": whether all of them match}."""
    records = dict(numbered)
    for number, answered in engine.answers(records.items(), options, seed):
        gold = list(engine.processor.gold(records[number]))
        answer = list(engine.processor.gold(answered))
        correct = all(map(is_match, answer, gold))
        yield number, {"gold": gold, "answer": answer, "correct": correct}


def summarise(rows: Sequence[Prediction]) -> dict[str, float]:
    """exact_match: share of records whose answers are all right; answer_match: share of the single answers."""
    answers = [text for row in rows for text in row["answer"]]
    golds = [text for row in rows for text in row["gold"]]
    return {
        "exact_match": share([row["correct"] for row in rows]),
        "answer_match": share(list(map(is_match, answers, golds))),
        "character_error": character_error(answers, golds),
    }


TASK = Task(predict, summarise, reads_options=True, compares_texts=True)
