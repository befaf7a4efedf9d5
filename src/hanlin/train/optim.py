"""The learning rate of a step.

The schedules are BMTrain's (golden case bee_noam), or those of schedules.py.
"""

from __future__ import annotations

import math

from hanlin.recipe.settings import TrainSettings
from hanlin.train.schedules import Curve, megatron_rate, tuning_rate

EXPONENTIAL_BASE = 0.95


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The rate of optimiser step `step` (counted from 1) of `total_steps`.

    linear and cosine are at 0 at `decay_steps`, by default just after the last step.
    """
    if settings.schedule_form != "bmtrain":
        curve = megatron_rate if settings.schedule_form == "megatron" else tuning_rate
        return curve(Curve.of(settings, total_steps), step - 1)
    number = step - 1 if settings.first_step_at_zero else step
    last = total_steps - 1 if settings.first_step_at_zero else total_steps
    end = settings.decay_steps or last + 1
    peak, warmup = settings.lr, settings.warmup_steps
    if settings.schedule == "noam":
        return _noam(peak, number, warmup)
    if number < warmup:
        return peak * number / warmup
    since, span = number - warmup, max(end - warmup, 1)
    if settings.schedule == "linear":
        return max(peak * (end - number) / span, 0.0)
    if settings.schedule == "cosine":
        # kept: after its end the rate rises again (bee_noam).
        return peak * 0.5 * (1 + math.cos(math.pi * since / span))
    return peak * EXPONENTIAL_BASE**since if settings.schedule == "exponential" else peak


def _noam(peak: float, number: int, warmup: int) -> float:
    if number < warmup:
        return peak * number / warmup**1.5
    return peak / math.sqrt(number) if number else 0.0
