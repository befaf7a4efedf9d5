"""The dynamic loss scale with hysteresis, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_case import Case

from hanlin.recipe.settings import TrainSettings
from hanlin.training.scale import LossScale

NAMES = {
    "init_scale": "loss_scale",
    "scale_window": "loss_scale_steps",
    "delayed_shift": "loss_scale_hysteresis",
    "min_scale": "loss_scale_min",
    "consecutive_hysteresis": "loss_scale_consecutive",
}
DEFAULTS = {"init_scale": 2.0**32, "scale_window": 1000, "delayed_shift": 1, "min_scale": 1}
"""Of the original's class."""


def check(case: Case, vocab: Path) -> None:
    del vocab
    stated = dict(case.facts["args"])
    # Only what differs from the class's own is said: a factor of 2, and a hysteresis that no good step refills.
    for name, neutral in {"scale_factor": 2, "consecutive_hysteresis": False, "raise_error_at_min_scale": True}.items():
        if stated.get(name) == neutral:
            del stated[name]
    settings = {NAMES.get(name, name): value for name, value in (DEFAULTS | stated).items()}
    if missing := settings.keys() - TrainSettings.model_fields.keys():
        pytest.skip(f"there is no setting for {', '.join(sorted(missing))} of the original's loss scaler")
    scale = LossScale.of(TrainSettings(precision="fp16", **settings))
    for number, (value, overflow) in enumerate(case.facts["trace"]):
        assert scale.value == value, number
        if overflow is not None:
            scale = scale.after(not overflow)
