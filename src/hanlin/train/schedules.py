"""The learning rates that fall to a floor (as in Megatron) or without an end: CPM-1's pretraining and fine-tuning.

`number` is the number of steps taken before: the first step of all has rate 0 if there is a warm-up.
Golden case cpm1_lr.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hanlin.recipe.settings import TrainSettings

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
    # kept: the clock stops there, so the fall ends at steps - 2 * warmup and never reaches its own end.
    if curve.warmup > 0 and number <= curve.warmup:
        return curve.peak * number / curve.warmup
    # differs: a warm-up of more than half the steps, behind whose end the clock stops, would make rates below 0.
    since = max(min(number, curve.steps - curve.warmup) - curve.warmup, 0)
    if curve.style == "exponential":
        rate = curve.peak * math.exp(-_HALVING * since / curve.steps)
    else:
        rate = _falling(curve, since)
    return max(rate, curve.least)


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
