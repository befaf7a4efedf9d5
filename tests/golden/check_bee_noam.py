"""The learning rate of every step, for each of BMTrain's schedules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.recipe.settings import TrainSettings
from hanlin.train.optim import learning_rate

KINDS = {
    "Noam": "noam",
    "Linear": "linear",
    "Cosine": "cosine",
    "Exponential": "exponential",
    "NoDecay": "constant",
    "Constant": "constant",
}


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    rel = float(facts["tolerance"].split()[-1])
    for schedule in facts["schedules"]:
        settings = TrainSettings(
            lr=schedule["start_lr"],
            schedule=KINDS[schedule["kind"]],  # pyright: ignore[reportArgumentType]
            warmup_steps=schedule["warmup_iter"],
            decay_steps=schedule["end_iter"],
            first_step_at_zero=True,
        )
        first = schedule["num_iter"] + 1
        ours = [learning_rate(settings, step, 10**9) for step in range(first, first + len(schedule["lr"]))]
        assert ours == pytest.approx(schedule["lr"], rel=rel, abs=schedule["start_lr"] * rel), schedule["kind"]
