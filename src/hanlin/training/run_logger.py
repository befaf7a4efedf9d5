"""How a run is watched: metrics.jsonl, trackers, a live line on a terminal, and log lines for all other places."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hanlin.core.errors import shorten
from hanlin.core.progress import LINE_SECONDS
from hanlin.core.terminal import shows_progress
from hanlin.parallel.parameter_statistics import ParameterStatistics
from hanlin.training.metrics import MetricsFile, missing_steps
from hanlin.training.parameter_table import as_table, as_values
from hanlin.training.step import StepReport
from hanlin.training.trackers import Tracker, open_trackers

log = logging.getLogger(__name__)

RECENT_STEPS = 50
"""Steps over which speed and the remaining time are averaged."""

SLOW_DATA_SHARE = 0.05
"""Of the time of a step; where batches take more than that, the log line says so."""


class RunLogger:
    """Shows and writes what happens in a run.

    console: where the live line goes (`core.logging.start_log` returns it); it must be the one the log lines go to;
    writes: metrics and trackers (of several ranks, one must); peak_flops: per second, of all devices of the run; None:
    not known.
    """

    def __init__(
        self,
        folder: Path,
        *,
        log_every: int = 10,
        console: Console | None = None,
        trackers: Sequence[str] = (),
        writes: bool = True,
        peak_flops: float | None = None,
    ) -> None:
        self.folder, self.log_every, self.tracker_names, self.writes = folder, log_every, trackers, writes
        self.console, self.peak_flops = console or Console(stderr=True), peak_flops
        self._recent: deque[StepReport] = deque(maxlen=RECENT_STEPS)
        self._outputs: list[MetricsFile | Tracker] = []
        self._inspected: MetricsFile | None = None
        self._total_steps = self._first_step = 0
        self._logged = time.monotonic()
        self._live = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[facts]}"),
            console=self.console, disable=not shows_progress(self.console), refresh_per_second=2, transient=True,
        )  # fmt: skip
        self._line = self._live.add_task("", facts="")

    @contextmanager
    def open(self, first_step: int, total_steps: int) -> Iterator[None]:
        """Watch the steps after `first_step`; what was written of them before is dropped."""
        self._total_steps, self._first_step = total_steps, first_step
        self._outputs = [self._open_metrics(first_step)] if self.writes else []
        self._live.update(self._line, completed=first_step, total=total_steps)
        try:
            if self.writes:
                self._outputs += open_trackers(self.tracker_names, self.folder, first_step)
            with self._live:
                yield
        finally:
            for output in (*self._outputs, *([self._inspected] if self._inspected else [])):
                output.close()

    def _open_metrics(self, first_step: int) -> MetricsFile:
        path = self.folder / "metrics.jsonl"
        if missing := missing_steps(path, first_step):
            log.error("%s: lines of steps are missing: %s", path, ", ".join(shorten(missing)))
        return MetricsFile(path, first_step)

    def step(self, number: int, report: StepReport) -> None:
        """After each step."""
        self._recent.append(report)
        values = asdict(report)
        measures = values.pop("measures")
        del values["flops"]  # of which mfu is made
        speed = {"tokens_per_second": round(report.tokens / _seconds(report), 1)}
        if (mfu := self._mfu([report])) is not None:
            speed["mfu"] = float(f"{mfu:.4g}")
        self._write(number, {**values, **measures, **speed})
        recent = self._mfu(self._recent)
        facts = {
            "loss": f"{report.loss:.4f}",
            **{name: f"{value:.4g}" for name, value in measures.items()},
            "lr": f"{report.lr:.3g}",
            "grad_norm": f"{report.grad_norm:.3g}",
            "tokens/s": f"{self.tokens_per_second:,.0f}",
            **({} if recent is None else {"mfu": f"{recent:.1%}"}),
            **self._slow_data(),
            "eta": str(timedelta(seconds=round(self._seconds_left(number)))),
        }
        line = " ".join(f"{name}={value}" for name, value in facts.items())
        self._live.update(self._line, completed=number, facts=line)
        is_due = number % self.log_every == 0 or number == self._total_steps
        if is_due or time.monotonic() - self._logged >= LINE_SECONDS:  # slow steps do not make a run silent
            self._logged = time.monotonic()
            log.info("step=%d/%d %s", number, self._total_steps, line)

    def parameters(self, number: int, found: Mapping[str, ParameterStatistics]) -> None:
        """In a step: what weights and gradients look like, as a table in the log and a line of parameters.jsonl."""
        if not self.writes:
            return
        if self._inspected is None:
            self._inspected = MetricsFile(self.folder / "parameters.jsonl", self._first_step)
        self._inspected.write(number, as_values(found))
        log.info("step=%d weights and gradients:\n%s", number, as_table(found))

    def evaluation(self, number: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """After each evaluation."""
        self._write(number, {f"eval_{name}": value for name, value in metrics.items()})
        line = " ".join(f"eval_{name}={value:.4f}" for name, value in metrics.items())
        log.info("step=%d %s%s", number, line, " (best so far)" if is_best else "")

    @property
    def tokens_per_second(self) -> float:
        """Over the last steps, the making of their batches included, without evaluations and checkpoints."""
        seconds = math.fsum(map(_seconds, self._recent))
        return sum(report.tokens for report in self._recent) / seconds if seconds else 0.0

    def _mfu(self, reports: Collection[StepReport]) -> float | None:
        """What the model needed of what the devices could have computed meanwhile; None where that is not known."""
        if self.peak_flops is None:
            return None
        return math.fsum(report.flops for report in reports) / math.fsum(map(_seconds, reports)) / self.peak_flops

    def _seconds_left(self, number: int) -> float:
        return math.fsum(map(_seconds, self._recent)) / len(self._recent) * (self._total_steps - number)

    def _slow_data(self) -> dict[str, str]:
        """How long a step waits for its batch, where that is worth a look."""
        waited = math.fsum(report.data_seconds for report in self._recent)
        if waited < SLOW_DATA_SHARE * math.fsum(map(_seconds, self._recent)):
            return {}
        return {"data_seconds": f"{waited / len(self._recent):.3g}"}

    def _write(self, number: int, values: Mapping[str, Any]) -> None:
        for output in self._outputs:
            output.write(number, values)


def _seconds(report: StepReport) -> float:
    """From the end of one step to that of the next, but for evaluations and checkpoints."""
    return report.data_seconds + report.seconds
