"""The training loop: step, watch, evaluate, save, until the end or a signal."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from hanlin.core.errors import noting
from hanlin.core.ranks import peak_memory_bytes
from hanlin.core.settings import TrainSettings
from hanlin.train.keeper import Batches, Keeper, Standing
from hanlin.train.signals import StopSignals
from hanlin.train.step import Step
from hanlin.train.watch import Watch

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
"""Exit code of a run that a signal ended after it was saved (BSD's "temporary failure"); the same command goes on."""

Evaluate = Callable[[], Mapping[str, float]]
"""Measures the model as it is: `loss`, and whatever else; must not touch the global random numbers."""

WriteSamples = Callable[[int], None]
"""Writes down what the model answers after a step; must not touch the global random numbers."""


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    end: steps = all were done; patience = the evaluation stopped improving; signal = interrupted and saved.
    """

    standing: Standing
    end: Literal["steps", "patience", "signal"]

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.end == "signal" else 0


class CountsSteps(Protocol):
    def steps_per_epoch(self, epoch: int = 0) -> int: ...


def count_steps(settings: TrainSettings, loader: CountsSteps) -> int:
    """The optimiser steps of a whole run."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None, "neither steps nor epochs"
    whole, rest = divmod(settings.epochs, 1)
    steps = sum(loader.steps_per_epoch(epoch) for epoch in range(int(whole)))
    return steps + (math.ceil(rest * loader.steps_per_epoch(int(whole))) if rest else 0)


def train(
    step: Step,
    loader: Batches,
    *,
    settings: TrainSettings,
    keeper: Keeper,
    watch: Watch,
    evaluate: Evaluate | None = None,
    write_samples: WriteSamples | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or from the start, to the end; leave a checkpoint, `last` and `best` behind.

    evaluate: None = never, and there is no `best`; write_samples: after each evaluation.
    Raises: HanlinError.
    """
    standing = keeper.resume()
    start = time.perf_counter()
    batches = loader.forever()
    in_step = noting(lambda: f"step={standing.step + 1}")
    with in_step, StopSignals() as signals, watch.open(standing.step, step.total_steps):
        while (end := _end(standing, step, settings, signals)) is None:
            report = step.run(next(batches))
            standing = standing.after_step()
            watch.step(standing.step, report)
            is_last = standing.step == step.total_steps
            if evaluate and (is_last or _is_due(standing.step, settings.eval_every)):
                standing = _evaluate(standing, evaluate, keeper, watch)
                if write_samples:
                    write_samples(standing.step)
            if _is_due(standing.step, settings.save_every):
                keeper.save(standing)
        keeper.save(standing)
        keeper.export("last")
        keeper.wait()
    log.info(
        "training ended by=%s step=%d minutes=%.1f tokens/s=%.0f peak_memory_gib=%.2f",
        end, standing.step, (time.perf_counter() - start) / 60, watch.tokens_per_second,
        peak_memory_bytes(step.parallel_model.device) / 2**30,
    )  # fmt: skip
    return Outcome(standing, end)


def _end(
    standing: Standing, step: Step, settings: TrainSettings, signals: StopSignals
) -> Literal["steps", "patience", "signal"] | None:
    if standing.step >= step.total_steps:
        return "steps"
    if settings.patience is not None and standing.worse >= settings.patience:
        return "patience"
    # A signal may reach one rank only; all must stop at the same step.
    is_interrupted = step.parallel_model.any(bool(signals.requested))
    if is_interrupted:
        log.warning("interrupted after step=%d: saving; a second signal ends at once", standing.step)
    return "signal" if is_interrupted else None


def _evaluate(standing: Standing, evaluate: Evaluate, keeper: Keeper, watch: Watch) -> Standing:
    metrics = evaluate()
    standing = standing.after_evaluation(metrics["loss"])
    watch.evaluation(standing.step, metrics, is_best=standing.is_best)
    if standing.is_best:
        keeper.export("best")
    return standing


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
