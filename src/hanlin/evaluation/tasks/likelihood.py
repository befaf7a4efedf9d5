"""Choice by likelihood: of a record's options take the one whose tokens the model finds most likely on average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from hanlin.core.batch import Sample
from hanlin.evaluation.metrics.text import mean, share
from hanlin.evaluation.scorable import choices, only_answer
from hanlin.generate.engine import Engine, naming
from hanlin.recipe.settings import GenerateSettings

from .loss import sample_losses
from .task import Numbered, Prediction, Task


def predict(
    engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int
) -> Iterator[tuple[int, Prediction]]:
    """Yield {"gold": option, "answer": option, "correct": bool, "scores": mean log likelihood of each option}."""
    golds: dict[int, str] = {}
    options_of: dict[int, list[str]] = {}
    scores: dict[int, dict[str, float]] = defaultdict(dict)

    def samples() -> Iterator[tuple[tuple[int, str], Sample]]:
        for number, record in numbered:
            with naming(number):
                samples_of = choices(engine.processor, record, engine.max_length)
                golds[number], options_of[number] = only_answer(engine.processor, record), list(samples_of)
                yield from (((number, option), sample) for option, sample in samples_of.items())

    for (number, option), loss, tokens in sample_losses(engine, samples(), options.batch_size):
        scores[number][option] = -loss / tokens
        if len(scores[number]) == len(options_of[number]):
            own = scores.pop(number)
            # In the record's order, so that equally likely options do not depend on which batch ended first.
            yield number, _row(golds[number], {option: own[option] for option in options_of[number]})


def summarise(rows: Sequence[Prediction]) -> dict[str, float]:
    """accuracy: share of records whose gold option won; chance: what guessing gives; gold_score: mean log likelihood
    per token of the gold options.
    """
    return {
        "accuracy": share([row["correct"] for row in rows]),
        "chance": mean([1 / len(row["scores"]) for row in rows]),
        "gold_score": mean([row["scores"][row["gold"]] for row in rows]),
    }


def _row(gold: str, scores: dict[str, float]) -> Prediction:
    answer = max(scores, key=lambda option: scores[option])
    return {"gold": gold, "answer": answer, "correct": answer == gold, "scores": scores}


TASK = Task(predict, summarise)
