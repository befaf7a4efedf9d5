"""Learning rate schedules.

standard: BMTrain's (golden case bee_noam). floored, endless: those of CPM-1's pretraining, which falls to a floor as in
Megatron, and of its fine-tuning, which has no end (golden case cpm1_lr); their `number` is the number of steps taken
before, so that the first step of all has rate 0 if there is a warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hanlin.recipe.settings import TrainSettings

EXPONENTIAL_BASE = 0.95


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (counted from 1) of `total_steps`.

    linear and cosine are at 0 at `decay_steps`, by default just after the last step.
    """
    # differs: behind its end a rate stays what it is there; the originals' cosines rise again, CPM-1's linear one falls
    # below 0.
    if settings.schedule_form != "standard":
        bounds = Curve.of(settings, total_steps)
        number = min(step - 1, bounds.end)
        if settings.schedule_form == "endless":
            return max(endless_rate(bounds, number), 0.0)
        return _without_fall(bounds, number) if 2 * bounds.warmup > bounds.steps else floored_rate(bounds, number)
    number = step - 1 if settings.first_step_at_zero else step
    last = total_steps - 1 if settings.first_step_at_zero else total_steps
    end = settings.decay_steps or last + 1
    if settings.schedule in ("linear", "cosine"):
        number = min(number, max(end, settings.warmup_steps))
    return standard_rate(settings, number, end)


def standard_rate(settings: TrainSettings, number: int, end: int) -> float:
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


Style = Literal["linear", "cosine", "exponential", "constant"]

_HALVING = 0.693  # the original's ln 2


@dataclass(frozen=True)
class Curve:
    """peak: the highest rate; steps: over which the rate falls; warmup: steps in which it rises, may be a fraction."""

    style: Style
    peak: float
    steps: float
    warmup: float = 0.0
    least: float = 0.0

    @property
    def end(self) -> float:
        """The number at which linear and cosine are at 0, if nothing stops them before; the others have no end."""
        return self.steps + self.warmup if self.style in ("linear", "cosine") else math.inf

    @classmethod
    def of(cls, settings: TrainSettings, total_steps: int) -> Curve:
        assert settings.schedule != "noam", settings.schedule
        steps = settings.decay_steps or total_steps
        share = settings.warmup_share
        warmup = settings.warmup_steps if share is None else share * steps
        return cls(settings.schedule, settings.lr, steps, warmup, settings.min_lr)


def floored_rate(curve: Curve, number: float) -> float:
    """The rate of pretraining: it falls from the warm-up's end on, and stays as it is at `steps - warmup`."""
    # kept (cpm1_lr): the clock stops there, so the fall ends at steps - 2 * warmup and never reaches its own end; after
    # a warm-up of more than half the steps the rate is above its peak. `learning_rate` does not follow it there.
    reached = min(number, curve.steps - curve.warmup)
    if curve.warmup > 0 and number <= curve.warmup:
        return curve.peak * reached / curve.warmup
    since = reached - curve.warmup
    if curve.style == "exponential":
        rate = curve.peak * math.exp(-_HALVING * since / curve.steps)
    else:
        rate = _falling(curve, since)
    return max(rate, curve.least)


def _without_fall(curve: Curve, number: float) -> float:
    """The floored rate where the warm-up takes more than half the steps: it rises to the peak and stays there."""
    if number <= curve.warmup:
        return curve.peak * number / curve.warmup
    return max(curve.peak, curve.least)


def endless_rate(curve: Curve, number: float) -> float:
    """The rate of fine-tuning: it has no least value and no end; exponential is constant."""
    # kept (cpm1_lr): behind the curve's end linear is below 0; `learning_rate` does not follow it there.
    if curve.warmup > 0 and number <= curve.warmup:
        return curve.peak * number / curve.warmup
    return _falling(curve, number - curve.warmup)


def _falling(curve: Curve, since: float) -> float:
    if curve.style == "linear":
        return curve.peak * (curve.steps - since) / curve.steps
    if curve.style == "cosine":
        return curve.peak / 2 * (math.cos(math.pi * since / curve.steps) + 1)
    return curve.peak
