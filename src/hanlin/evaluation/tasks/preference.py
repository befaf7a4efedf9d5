"""Preference rows: is the chosen answer likelier than the rejected one, by the model as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from hanlin.core.batch import Sample
from hanlin.evaluation.metrics.text import mean, share
from hanlin.evaluation.scorable import COMPARED, encode
from hanlin.generate.engine import Engine, naming
from hanlin.recipe.settings import GenerateSettings

from .loss import sample_losses
from .task import Numbered, Prediction, Task


def predict(
    engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int
) -> Iterator[tuple[int, Prediction]]:
    """Yield {"scores": log likelihood of each answer, "tokens": of each}; records: the answers of a row, by name."""
    found: dict[int, dict[str, tuple[float, float]]] = defaultdict(dict)

    def samples() -> Iterator[tuple[tuple[int, str], Sample]]:
        for number, record in numbered:
            with naming(number):
                yield from (
                    ((number, side), encode(engine.processor, own, engine.max_length)) for side, own in record.items()
                )

    for (number, side), loss, tokens in sample_losses(engine, samples(), options.batch_size):
        found[number][side] = -loss, tokens
        if len(found[number]) == len(COMPARED):
            own = found.pop(number)
            scores, counts = ({side: own[side][place] for side in COMPARED} for place in (0, 1))
            yield number, {"scores": scores, "tokens": counts}


def summarise(rows: Sequence[Prediction]) -> dict[str, float]:
    """accuracy: share of rows whose chosen answer is likelier; margin: mean by which its log likelihood is greater;
    both also by the mean log likelihood of a token, which does not favour short answers.
    """
    whole = [row["scores"]["chosen"] - row["scores"]["rejected"] for row in rows]
    per_token = [_per_token(row, "chosen") - _per_token(row, "rejected") for row in rows]
    return {
        "accuracy": share([margin > 0 for margin in whole]),
        "margin": mean(whole),
        "accuracy_per_token": share([margin > 0 for margin in per_token]),
        "margin_per_token": mean(per_token),
    }


def _per_token(row: Prediction, side: str) -> float:
    return row["scores"][side] / max(row["tokens"][side], 1.0)


TASK = Task(predict, summarise)
