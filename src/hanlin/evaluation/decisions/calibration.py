"""Temperature scaling (Guo et al. 2017): one number by which logits are divided, fitted on rows whose answer is known.

It changes how sure a model says it is, never which answer it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import CheckpointError, DataError
from hanlin.core.files import read_json_object, replace_json
from hanlin.evaluation.results import Identity

__all__ = [
    "FEWEST",
    "LARGEST",
    "SMALLEST",
    "Calibration",
    "Quality",
    "Trial",
    "calibrate",
    "calibration_error",
    "fit_temperature",
    "quality_of",
    "read_calibration",
    "reliability",
    "write_calibration",
]

NUM_BINS = 15
"""Of confidences, as wide as each other, as in the paper."""
SMALLEST, LARGEST = 0.05, 100.0
"""Temperatures: what rows that are all right, or no better than guessed, would lead beyond."""
FEWEST = 10
"""Rows that say anything about how often a model is right."""


@dataclass(frozen=True)
class Trial:
    """A question whose answer is known. logits: `[options]`, of two at least; gold: the number of the right one."""

    logits: np.ndarray
    gold: int

    def chances(self, temperature: float) -> np.ndarray:
        """`[options]`, how probable each is."""
        logits = self.logits / temperature
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()


@dataclass(frozen=True)
class Quality:
    """accuracy: share of right answers; negative_log_likelihood: of the right answers, in nats, the mean;
    calibration_error: how far confidence and accuracy lie apart, as `calibration_error` counts it.
    """

    accuracy: float
    negative_log_likelihood: float
    calibration_error: float


@dataclass(frozen=True)
class Calibration:
    """What was fitted, on what, and what it changed. temperature: 1 where no other one does better. after: each half of
    the trials by the temperature of the other, so that none is judged by a number that it has helped to find; weights,
    data: whose it is, and what it was fitted on.
    """

    temperature: float
    trials: int
    before: Quality
    after: Quality
    weights: Identity
    data: Identity

    @property
    def is_at_bound(self) -> bool:
        """Whether the trials would have led further."""
        return not SMALLEST < self.temperature < LARGEST


def calibrate(trials: Sequence[Trial], weights: Identity, data: Identity) -> Calibration:
    """Raises: DataError for too few trials."""
    if len(trials) < FEWEST:
        raise DataError(f"{len(trials)} questions with a known answer are too few to calibrate by; give {FEWEST}")
    before = quality_of([(trial, 1.0) for trial in trials])
    after = quality_of(crossed(trials))
    if after.negative_log_likelihood >= before.negative_log_likelihood:
        return Calibration(1.0, len(trials), before, before, weights, data)
    return Calibration(fit_temperature(trials), len(trials), before, after, weights, data)


def crossed(trials: Sequence[Trial]) -> list[tuple[Trial, float]]:
    """Each trial with the temperature that the other half of them asks for; the halves are drawn, since rows may come
    in an order of their answers.
    """
    order = np.random.default_rng(0).permutation(len(trials)).tolist()
    halves = [[trials[place] for place in order[begin::2]] for begin in (0, 1)]
    found = [fit_temperature(half) for half in halves]
    return [(trial, found[1 - number]) for number, half in enumerate(halves) for trial in half]


def fit_temperature(trials: Sequence[Trial]) -> float:
    """The temperature that makes the right answers likeliest, between SMALLEST and LARGEST.

    The mean negative log likelihood is convex in the inverse of the temperature, so its slope is bisected.
    """
    low, high = 1 / LARGEST, 1 / SMALLEST
    logits, golds = _padded(trials), np.array([trial.gold for trial in trials])
    if _slope(logits, golds, low) >= 0:
        return LARGEST
    if _slope(logits, golds, high) <= 0:
        return SMALLEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _slope(logits, golds, middle) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def _padded(trials: Sequence[Trial]) -> np.ndarray:
    """`[trials, options]`, each less its largest one; minus infinity where a trial has fewer options."""
    found = np.full((len(trials), max(len(trial.logits) for trial in trials)), -np.inf)
    for row, trial in zip(found, trials, strict=True):
        row[: len(trial.logits)] = trial.logits - trial.logits.max()
    return found


def _slope(logits: np.ndarray, golds: np.ndarray, inverse: float) -> float:
    """Of the negative log likelihood over the inverse temperature: mean logit less the right one's, over all trials."""
    weights = np.exp(logits * inverse)
    means = (weights * np.where(weights > 0, logits, 0.0)).sum(-1) / weights.sum(-1)
    return float((means - logits[np.arange(len(golds)), golds]).sum())


def quality_of(trials: Sequence[tuple[Trial, float]]) -> Quality:
    """Of trials, each with its temperature."""
    chances = [trial.chances(temperature) for trial, temperature in trials]
    golds = [trial.gold for trial, _ in trials]
    right = [bool(own.argmax() == gold) for own, gold in zip(chances, golds, strict=True)]
    told = [max(float(own[gold]), 1e-300) for own, gold in zip(chances, golds, strict=True)]
    error = calibration_error([float(own.max()) for own in chances], right)
    return Quality(float(np.mean(right)), float(-np.log(told).mean()), error)


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, by its share of the trials."""
    total = len(confidences)
    return float(sum(count / total * abs(accuracy - sure) for count, sure, accuracy in reliability(confidences, right)))


def reliability(confidences: Sequence[float], right: Sequence[bool]) -> list[tuple[int, float, float]]:
    """Of each bin that is not empty: how many trials, their mean confidence, and the share of right ones."""
    numbers = np.minimum((np.array(confidences) * NUM_BINS).astype(int), NUM_BINS - 1)
    found = []
    for number in range(NUM_BINS):
        own = numbers == number
        if own.any():
            found.append((int(own.sum()), float(np.array(confidences)[own].mean()), float(np.array(right)[own].mean())))
    return found


def write_calibration(path: Path, calibration: Calibration) -> None:
    replace_json(path, asdict(calibration))


def read_calibration(path: Path) -> Calibration:
    """Raises: CheckpointError for a file that is none."""
    values: Any = read_json_object(path)
    try:
        before, after = (Quality(**values.pop(name)) for name in ("before", "after"))
        weights, data = (
            Identity(tuple(values[name]["files"]), str(values.pop(name)["sha256"])) for name in ("weights", "data")
        )
        found = Calibration(**values, before=before, after=after, weights=weights, data=data)
        if not SMALLEST <= found.temperature <= LARGEST:
            raise ValueError(f"its temperature is {found.temperature}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: this is no calibration ({error}); remove it, or calibrate again") from None
    return found
