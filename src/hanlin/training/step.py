"""One optimizer step: micro-batches, one denominator for all of them, clipping, and no step on broken numbers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hanlin.core.batch import Batch
from hanlin.core.errors import HanlinError, shorten
from hanlin.parallel.mesh import Reduction
from hanlin.parallel.parallel_model import BackwardResult, ParallelModel
from hanlin.parallel.parameter_statistics import ParameterStatistics
from hanlin.recipe.settings import TrainSettings
from hanlin.training.needed_flops import NeededFlops
from hanlin.training.objective import Objective, Weighed
from hanlin.training.objectives.likelihood import LikelihoodObjective
from hanlin.training.optimizer import Optimizer
from hanlin.training.rounding import RoundedOptimizer
from hanlin.training.scale import LossScale
from hanlin.training.schedules import learning_rate

log = logging.getLogger(__name__)

NAMED_ROWS = 20
"""Rows of a skipped batch that a message names."""


Inspect = Callable[[Mapping[str, ParameterStatistics]], None]
"""Takes the statistics of a step: weights before it, gradients of the loss before clipping, by name."""


@dataclass(frozen=True)
class NextStep:
    """What a rank knows of the step after the one that runs. Ranks tell each other at the end of that one, so that they
    need not ask between two steps.

    batch: its batch, None where there is none; wants_end: whether this rank is to end instead.
    """

    batch: Callable[[], Batch | None] = lambda: None
    wants_end: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _GlobalBatch:
    """A batch over all data ranks. most_rows: of the rank that has most; tokens: without padding; size: what it counts
    in the mean; flops: that the model needs for it.
    """

    most_rows: int
    tokens: int
    size: float
    flops: float

    @staticmethod
    def of(rows: Sequence[float], counted: Sequence[float]) -> _GlobalBatch:
        tokens, size, flops = counted
        return _GlobalBatch(int(rows[0]), int(tokens), size, flops)


@dataclass(frozen=True)
class StepReport:
    """What one step did; over all ranks.

    loss: before the step; lr: the rate used; grad_norm: before clipping; tokens: without padding; loss_tokens: sum of
    the weights in the loss (or the pairs that are compared); skipped: a number was not finite, the weights are as
    before; scale: of the loss (fp16); data_seconds: this process waited for the batch before the step, whose own time
    is `seconds`; cpu_seconds: of this process in both; memory_gib, peak_memory_gib: what this process holds on its
    device after the step, and the most so far; measures: what else the objective measures; flops: that the model needs
    for the step, 0 where nobody counts them.
    """

    loss: float
    lr: float
    grad_norm: float
    tokens: int
    loss_tokens: float
    skipped: bool
    scale: float
    seconds: float
    data_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_gib: float = 0.0
    peak_memory_gib: float = 0.0
    measures: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0


class Step:
    """Turns batches into weight changes.

    where: names the rows of a batch, for the message about a skipped one.
    """

    def __init__(
        self,
        parallel_model: ParallelModel,
        optimizer: Optimizer,
        settings: TrainSettings,
        total_steps: int,
        where: Callable[[Batch], Sequence[str]] | None = None,
        objective: Objective | None = None,
        needed: NeededFlops | None = None,
    ) -> None:
        """objective: None: likelihood; needed: by the whole model; None: nobody counts that."""
        self.parallel_model, self.optimizer, self.settings = parallel_model, optimizer, settings
        self.objective, self.needed = objective or LikelihoodObjective(), needed or NeededFlops({})
        self.total_steps = total_steps
        self.where = where or _row_numbers
        self.scale = LossScale.of(settings)
        self.updates = 0
        self.skipped_in_row = 0
        self.is_end_wanted = False
        """Whether any rank was to end when the last step did."""
        self._upcoming: tuple[Batch, _GlobalBatch] | None = None

    def run(self, batch: Batch, inspect: Inspect | None = None, following: NextStep | None = None) -> StepReport:
        """Train on one batch (this rank's share of it).

        inspect: gets the statistics of weights and gradients; of all ranks or of none. following: `NextStep`.
        Raises: HanlinError after `max_skipped` broken steps in a row.
        """
        start = time.perf_counter()
        whole = self._global_batch(batch)
        parts = self.parallel_model.split(batch, self.settings.micro_batch_size, whole.most_rows)
        weighed = self.objective.weigh(self.parallel_model, parts)
        found, totals = self._accumulate(weighed, whole.size, following or NextStep())
        measures = {
            name: total / (whole.size or 1.0) for name, total in zip(self.objective.measures, totals, strict=True)
        }
        losses, scale = found.losses, self.scale.value
        loss, norm = measures.pop("loss", found.loss), found.grad_norm / scale
        if inspect is not None:
            inspect(self.parallel_model.parameter_statistics(scale))
        rate = learning_rate(self.settings, self.updates + 1, self.total_steps)
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if is_finite:
            self._update(norm, rate)
        self.parallel_model.drop_grads()
        seconds = time.perf_counter() - start
        facts = (loss, rate, norm, whole.tokens, whole.size, not is_finite, scale, seconds)
        report = StepReport(*facts, measures=measures, flops=whole.flops)
        broken = [part for part, value in zip(parts, losses, strict=True) if not math.isfinite(value)]
        self._judge(report, broken or [batch])
        return report

    def values(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights and optimizer."""
        scale = {"value": self.scale.value, "good_steps": self.scale.good_steps, "spent": self.scale.spent}
        return {"updates": self.updates, "skipped_in_row": self.skipped_in_row, "scale": scale}

    def restore(self, values: dict[str, Any]) -> None:
        self.updates, self.skipped_in_row = values["updates"], values["skipped_in_row"]
        if self.scale.patience:
            self.scale = replace(self.scale, **values["scale"])

    def _global_batch(self, batch: Batch) -> _GlobalBatch:
        """As the ranks told each other in the step before; asked where they did not."""
        told, self._upcoming = self._upcoming, None
        if told is not None and told[0] is batch:
            return told[1]
        return _GlobalBatch.of(*self.parallel_model.mesh.exchange(*self._share_of(batch)))

    def _share_of(self, batch: Batch | None) -> list[Reduction]:
        """What this rank tells of its share; of none where it has none."""
        if batch is None:
            return [("data", "max", [0]), ("data", "sum", [0.0, 0.0, 0.0])]
        extent = batch.extent
        counted = [extent.tokens + extent.read_tokens, self.objective.size(batch), self.needed.of(extent)]
        return [("data", "max", [batch.size]), ("data", "sum", counted)]

    def _accumulate(
        self, weighed: Sequence[Weighed], size: float, following: NextStep
    ) -> tuple[BackwardResult, list[float]]:
        """Sum the gradients of the micro-batches, and what was measured of them, over the ranks."""
        parts = [one.batch for one in weighed]
        denominators = [size] * len(parts)
        if self.settings.loss_mean == "batch":  # mean of the means of each forward pass
            denominators = [self.objective.size(part) * len(parts) * self.parallel_model.data_ranks for part in parts]
        denominators = [number or 1.0 for number in denominators]  # nothing in the loss: 0 / 1, not 0 / 0
        upcoming = None

        def tell() -> list[Reduction]:
            nonlocal upcoming
            upcoming = None if self.parallel_model.mesh.size("all") == 1 else following.batch()
            ends = ("all", "max", [following.wants_end()])
            return [ends, ("data", "sum", _sum_measured(weighed)), *self._share_of(upcoming)]

        found = self.parallel_model.forward_backward(
            parts,
            denominators,
            self.scale.value,
            tell,
            dropout=self.objective.uses_dropout,
            around=[one.around for one in weighed if one.around is not None],
        )
        (end,), totals, *batch = found.told
        self.is_end_wanted = end > 0
        self._upcoming = None if upcoming is None else (upcoming, _GlobalBatch.of(*batch))
        return found, totals

    def _update(self, norm: float, rate: float) -> None:
        factor = 1 / self.scale.value
        if self.settings.clip is not None:
            factor *= min(1.0, self.settings.clip / (norm + 1e-6))
        if factor != 1:
            self.parallel_model.scale_grads(factor)
        if isinstance(self.optimizer, RoundedOptimizer):
            self.optimizer.updates = self.updates
        self.optimizer.step(rate)
        self.updates += 1

    def _judge(self, report: StepReport, suspects: Sequence[Batch]) -> None:
        """Adapt the loss scale; name the rows of a broken step, and stop after too many."""
        before, self.scale = self.scale, self.scale.after(not report.skipped)
        if not report.skipped:
            self.skipped_in_row = 0
            return
        if math.isfinite(report.loss) and (self.scale.value < before.value or self.scale.spent > before.spent):
            # Usual at the start of fp16: the scale was too large, the data are not to blame.
            log.info("step skipped: fp16 overflow loss=%.4g scale=%g->%g", report.loss, report.scale, self.scale.value)
            return
        self.skipped_in_row += 1
        rows = [name for part in suspects for name in self.where(part)]
        what = f"loss={report.loss:g} grad_norm={report.grad_norm:g} rows={_some(rows)}"
        log.warning("step skipped, weights unchanged (%d in a row): %s", self.skipped_in_row, what)
        if self.skipped_in_row >= self.settings.max_skipped:
            raise HanlinError(
                f"{self.skipped_in_row} steps in a row gave a loss or gradient that is not finite (the last: {what}); "
                "look at these rows, lower train.lr, or use another train.precision; "
                "train.max_skipped allows more such steps"
            )


def _sum_measured(weighed: Sequence[Weighed]) -> list[float]:
    """Over the micro-batches of this rank; read from the device at once."""
    measured = [one.measured for one in weighed if one.measured is not None]
    return sum(measured[1:], start=measured[0]).tolist() if measured else []


def _row_numbers(batch: Batch) -> list[str]:
    return [f"row {number}" for row in batch.rows for number in row]


def _some(rows: Sequence[str]) -> str:
    return f"[{', '.join(shorten(rows, NAMED_ROWS))}]"
