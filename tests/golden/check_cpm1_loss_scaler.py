"""The dynamic loss scale with hysteresis, step by step."""

from __future__ import annotations

import json
from pathlib import Path

from hanlin.recipe.settings import TrainSettings
from hanlin.train.scale import LossScale


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    stated = facts["args"]
    scale = LossScale.of(
        TrainSettings(
            precision="fp16",
            loss_scale=stated["init_scale"],
            loss_scale_steps=stated["scale_window"],
            loss_scale_hysteresis=stated["delayed_shift"],
            loss_scale_min=stated["min_scale"],
        )
    )
    for number, (value, overflow) in enumerate(facts["trace"]):
        assert scale.value == value, number
        if overflow is not None:
            scale = scale.after(not overflow)
