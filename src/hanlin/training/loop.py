"""The training loop: step, watch, evaluate, save, until the end or a signal."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

from hanlin.core.device import memory_bytes, peak_memory_bytes
from hanlin.core.errors import noting
from hanlin.recipe.settings import TrainSettings
from hanlin.training.batches_ahead import BatchesAhead
from hanlin.training.run_checkpoints import Batches, RunCheckpoints, TrainProgress
from hanlin.training.run_logger import RunLogger
from hanlin.training.signals import StopSignals
from hanlin.training.step import Inspect, NextStep, Step, StepReport

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

    progress: TrainProgress
    end: Literal["steps", "patience", "signal"]

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.end == "signal" else 0


class CountsSteps(Protocol):
    def steps_per_epoch(self, epoch: int = 0) -> int: ...


def count_steps(settings: TrainSettings, loader: CountsSteps) -> int:
    """The optimizer steps of a whole run."""
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
    checkpoints: RunCheckpoints,
    logger: RunLogger,
    evaluate: Evaluate | None = None,
    write_samples: WriteSamples | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or from the start, to the end; leave a checkpoint, `last` and `best` behind.

    evaluate: None = never, and there is no `best`; write_samples: after each evaluation.
    Raises: HanlinError.
    """
    progress = checkpoints.resume()
    start = time.perf_counter()
    in_step = noting(lambda: f"step={progress.step + 1}")
    watching = logger.open(progress.step, step.total_steps)
    ahead = BatchesAhead(loader, step.total_steps - progress.step)
    with in_step, StopSignals() as signals, watching, ahead as batches:
        while (end := _end(progress, step, settings, signals)) is None:
            number = progress.step + 1
            inspect = partial(logger.parameters, number) if _is_due(number, settings.inspect_every) else None
            report = _timed_step(step, batches, signals, inspect)
            progress = progress.after_step()
            logger.step(progress.step, report)
            is_last = progress.step == step.total_steps
            if evaluate and (is_last or _is_due(progress.step, settings.eval_every)):
                progress = _evaluate(progress, evaluate, checkpoints, logger)
                if write_samples:
                    write_samples(progress.step)
            if _is_due(progress.step, settings.save_every):
                checkpoints.save(progress, batches.position)
        checkpoints.save(progress, batches.position)
        checkpoints.export("last")
        checkpoints.wait()
    log.info(
        "training ended by=%s step=%d minutes=%.1f tokens/s=%.0f peak_memory_gib=%.2f",
        end, progress.step, (time.perf_counter() - start) / 60, logger.tokens_per_second,
        peak_memory_bytes(step.parallel_model.device) / 2**30,
    )  # fmt: skip
    return Outcome(progress, end)


def _timed_step(step: Step, batches: BatchesAhead, signals: StopSignals, inspect: Inspect | None) -> StepReport:
    """One step, with the time in which batches were waited for, before and within it, and the memory."""
    before, cpu_before = batches.seconds_waited, time.process_time()
    batch = batches.take()
    at_start = batches.seconds_waited
    with signals.step():
        report = step.run(batch, inspect, NextStep(batches.peek, lambda: signals.requested))
    end, device = batches.seconds_waited, step.parallel_model.device
    return replace(
        report,
        seconds=report.seconds - (end - at_start),
        data_seconds=end - before,
        cpu_seconds=time.process_time() - cpu_before,
        memory_gib=round(memory_bytes(device) / 2**30, 3),
        peak_memory_gib=round(peak_memory_bytes(device) / 2**30, 3),
    )


def _end(
    progress: TrainProgress, step: Step, settings: TrainSettings, signals: StopSignals
) -> Literal["steps", "patience", "signal"] | None:
    if progress.step >= step.total_steps:
        return "steps"
    if settings.patience is not None and progress.worse >= settings.patience:
        return "patience"
    # A signal may reach one rank only; all must stop at the same step, at whose end they heard of it.
    is_interrupted = step.is_end_wanted or (signals.requested and step.parallel_model.mesh.size("all") == 1)
    if is_interrupted:
        log.warning("interrupted after step=%d: saving; a second signal ends at once", progress.step)
    return "signal" if is_interrupted else None


def _evaluate(
    progress: TrainProgress, evaluate: Evaluate, checkpoints: RunCheckpoints, logger: RunLogger
) -> TrainProgress:
    metrics = evaluate()
    progress = progress.after_evaluation(metrics["loss"])
    logger.evaluation(progress.step, metrics, is_best=progress.is_best)
    if progress.is_best:
        checkpoints.export("best")
    return progress


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
