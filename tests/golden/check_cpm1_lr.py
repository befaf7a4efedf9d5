"""The learning rate of every step, for the curves of pretraining and of fine-tuning; where a curve rises above its
peak or falls below 0 it is not trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_case import Case

from hanlin.recipe.settings import TrainSettings
from hanlin.training.schedules import Curve, endless_rate, floored_rate, learning_rate


def check(case: Case, vocab: Path) -> None:
    del vocab
    rel = case.tolerance("rel", default=1e-9)
    for row in case.facts["rows"]:
        rate = floored_rate if row["scheduler"] == "pretrain" else endless_rate
        steps, peak = row["total_iters"], row["start_lr"]
        curve = Curve(row["decay_style"], peak, steps, row["warmup"] * steps, row.get("min_lr", 0.0))
        is_sane = rate is endless_rate or 2 * curve.warmup <= steps
        for number, theirs in row["lr_after_n_steps"].items():
            assert rate(curve, int(number)) == pytest.approx(theirs, rel=rel, abs=peak * rel), (row, number)
            if isinstance(steps, int) and int(number) <= curve.end and is_sane:
                assert learning_rate(_settings(row), int(number) + 1, steps) == rate(curve, int(number))


def _settings(row: dict) -> TrainSettings:
    return TrainSettings(
        lr=row["start_lr"],
        min_lr=row.get("min_lr", 0.0),
        schedule=row["decay_style"],
        schedule_form="floored" if row["scheduler"] == "pretrain" else "endless",
        warmup_share=row["warmup"],
    )
