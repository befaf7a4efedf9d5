"""The learning rate of a step.

The standard schedules are BMTrain's (golden case bee_noam); the others are in schedules.py.
"""

from __future__ import annotations

import math

from hanlin.recipe.settings import TrainSettings
from hanlin.train.schedules import Curve, endless_rate, floored_rate

EXPONENTIAL_BASE = 0.95


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The rate of optimiser step `step` (counted from 1) of `total_steps`.

    linear and cosine are at 0 at `decay_steps`, by default just after the last step.
    """
    # differs: behind its end a rate stays what it is there; the originals' cosines rise again, CPM-1's linear one falls
    # below 0.
    if settings.schedule_form != "standard":
        curve = floored_rate if settings.schedule_form == "floored" else endless_rate
        bounds = Curve.of(settings, total_steps)
        return max(curve(bounds, min(step - 1, bounds.end)), 0.0)
    number = step - 1 if settings.first_step_at_zero else step
    last = total_steps - 1 if settings.first_step_at_zero else total_steps
    end = settings.decay_steps or last + 1
    if settings.schedule in ("linear", "cosine"):
        number = min(number, max(end, settings.warmup_steps))
    return bmtrain_rate(settings, number, end)


def bmtrain_rate(settings: TrainSettings, number: int, end: int) -> float:
    """The rate after `number` steps of a curve that falls until step `end`."""
    peak, warmup = settings.lr, settings.warmup_steps
    if settings.schedule == "noam":
        return _noam(peak, number, warmup)
    if number < warmup:
        return peak * number / warmup
    since, span = number - warmup, max(end - warmup, 1)
    if settings.schedule == "linear":
        return max(peak * (end - number) / span, 0.0)
    if settings.schedule == "cosine":
        # kept (bee_noam, cpm2_metrics): after its end the curve rises again; `learning_rate` does not follow it there.
        return peak * 0.5 * (1 + math.cos(math.pi * since / span))
    return peak * EXPONENTIAL_BASE**since if settings.schedule == "exponential" else peak


def _noam(peak: float, number: int, warmup: int) -> float:
    if number < warmup:
        return peak * number / warmup**1.5
    return peak / math.sqrt(number) if number else 0.0
