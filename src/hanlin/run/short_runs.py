"""Runs that end before their rate has risen: a row holds several packed samples, so few rows are few steps."""

from __future__ import annotations

from hanlin.recipe.settings import TrainSettings


def short_run(settings: TrainSettings, steps: int) -> str | None:
    """What is said of a run whose rate only rises in its steps; None: it rises and goes on."""
    if settings.warmup_steps < steps:
        return None
    return (
        f"train.warmup_steps={settings.warmup_steps}, but the run has {steps} steps, in which the rate only rises; "
        "lower it, or make more steps (train.epochs, a smaller train.batch_size or data.max_length)"
    )
