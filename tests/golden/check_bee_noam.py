"""The learning rate of every step, for each of BMTrain's schedules; behind its end a curve is not trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_case import Case

from hanlin.recipe.settings import TrainSettings
from hanlin.training.schedules import learning_rate, standard_rate

KINDS = {
    "Noam": "noam",
    "Linear": "linear",
    "Cosine": "cosine",
    "Exponential": "exponential",
    "NoDecay": "constant",
    "Constant": "constant",
}


def check(case: Case, vocab: Path) -> None:
    del vocab
    rel = case.tolerance("rel", default=1e-12)
    for schedule in case.facts["schedules"]:
        settings = TrainSettings(
            lr=schedule["start_lr"],
            schedule=KINDS[schedule["kind"]],  # pyright: ignore[reportArgumentType]
            warmup_steps=schedule["warmup_iter"],
            decay_steps=schedule["end_iter"],
            first_step_at_zero=True,
        )
        first, end = schedule["num_iter"], schedule["end_iter"]
        numbers = range(first, first + len(schedule["lr"]))
        ours = [standard_rate(settings, number, end) for number in numbers]
        inside = [rate for number, rate in zip(numbers, ours, strict=True) if number <= end]
        assert [learning_rate(settings, first + place + 1, 10**9) for place in range(len(inside))] == inside
        assert ours == pytest.approx(schedule["lr"], rel=rel, abs=schedule["start_lr"] * rel), schedule["kind"]
