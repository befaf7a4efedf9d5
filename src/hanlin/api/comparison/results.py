"""What came of a cell, read from its run folder, and of a recipe and method, over the seeds. No torch here."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hanlin.adapters.opening import weights_of_run
from hanlin.core.errors import DataError, HanlinError
from hanlin.core.files import read_json_object, replace_json

__all__ = ["RESULT", "CellResult", "Measures", "Spread", "Summary", "read_result", "summarise", "write_result"]

RESULT = "compare.json"
"""In the run folder of a cell: what came of it."""

State = Literal["done", "failed", "not yet"]

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t with 1, 2, ... 30 degrees of freedom; behind them the normal one is near enough."""
_NORMAL_975 = 1.960
_TRAINED = re.compile(r"trained=([\d,]+) of ([\d,]+) parameters")
_PEAK = re.compile(r"peak_memory_gib=([\d.]+)")


@dataclass(frozen=True)
class Measures:
    """Of a run; None: not measured.

    score: as the grid names it; held_out_loss: the best one on data.eval; general_before, general_after: loss of
    general text; trained, parameters: numbers of them; peak_gib: most memory that training took, of all its starts;
    minutes: of its steps by the clock; cpu_minutes: of its first process in them; tokens_per_second: by the clock,
    without padding; handed_on_bytes: of best/ or last/; steps.
    """

    score: float | None = None
    held_out_loss: float | None = None
    general_before: float | None = None
    general_after: float | None = None
    trained: int | None = None
    parameters: int | None = None
    peak_gib: float | None = None
    minutes: float | None = None
    cpu_minutes: float | None = None
    tokens_per_second: float | None = None
    handed_on_bytes: int | None = None
    steps: int | None = None

    @property
    def forgetting(self) -> float | None:
        """By how much the loss of general text has risen."""
        if self.general_before is None or self.general_after is None:
            return None
        return self.general_after - self.general_before


@dataclass(frozen=True)
class CellResult:
    """One run. identity: of its settings and what it was scored on; scores: all of `hanlin evaluate`, by task."""

    recipe: str
    method: str
    seed: int
    state: State
    identity: str = ""
    reason: str = ""
    measures: Measures = Measures()
    scores: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.recipe}/{self.method}/seed{self.seed}"


@dataclass(frozen=True)
class Spread:
    """Over seeds: their mean, and the half width of its 95 % confidence interval (None: of one seed)."""

    mean: float
    half_width: float | None = None
    count: int = 1


@dataclass(frozen=True)
class Summary:
    """A recipe and method over its seeds; done, cells: runs; spreads: by the names of `Measures`, and forgetting."""

    recipe: str
    method: str
    done: int
    cells: int
    spreads: Mapping[str, Spread]


def write_result(folder: Path, result: CellResult) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / RESULT, {**asdict(result), "forgetting": result.measures.forgetting})


def read_result(folder: Path) -> CellResult | None:
    """None where there is none, or none that can be read: the cell is looked at again."""
    try:
        values = read_json_object(folder / RESULT) if (folder / RESULT).is_file() else None
        if values is None:
            return None
        values.pop("forgetting", None)
        return CellResult(**{**values, "measures": Measures(**values["measures"])})
    except (HanlinError, TypeError, KeyError):
        return None


def measure(folder: Path, scores: Mapping[str, Any], score: str) -> Measures:
    """Of a trained and scored run; without general text.

    Raises: DataError where the scores have not what the grid asks for.
    """
    task, _, metric = score.partition(".")
    of_task = scores.get(task) or {}
    if metric not in of_task:
        known = ", ".join(f"{one}.{name}" for one, values in scores.items() for name in values)
        raise DataError(f"score: there is no {score} among what was scored; there are {known}")
    lines = [*_metric_lines(folder / "metrics.jsonl")]
    steps = [line for line in lines if "seconds" in line]
    seconds = math.fsum(line["seconds"] + line.get("data_seconds", 0.0) for line in steps)
    cpu_seconds = [line["cpu_seconds"] for line in steps if "cpu_seconds" in line]
    losses = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    trained, peaks = _TRAINED.findall(log), _PEAK.findall(log)
    return Measures(
        score=of_task[metric],
        held_out_loss=min(losses, default=None),
        trained=int(trained[-1][0].replace(",", "")) if trained else None,
        parameters=int(trained[-1][1].replace(",", "")) if trained else None,
        peak_gib=max(map(float, peaks), default=None),
        minutes=seconds / 60,
        cpu_minutes=math.fsum(cpu_seconds) / 60 if cpu_seconds else None,
        tokens_per_second=sum(line["tokens"] for line in steps) / seconds if seconds else None,
        handed_on_bytes=sum(file.stat().st_size for file in weights_of_run(folder).rglob("*") if file.is_file()),
        steps=max((line["step"] for line in steps), default=0),
    )


def _metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the last one of a run that was killed
        if isinstance(values, dict):
            yield values


def summarise(results: Sequence[CellResult]) -> list[Summary]:
    """In the order of the cells."""
    found = []
    for recipe, method in dict.fromkeys((one.recipe, one.method) for one in results):
        own = [one for one in results if (one.recipe, one.method) == (recipe, method)]
        done = [one.measures for one in own if one.state == "done"]
        names = [*(field.name for field in fields(Measures)), "forgetting"]
        spreads = {name: spread for name in names if (spread := spread_of([getattr(one, name) for one in done]))}
        found.append(Summary(recipe, method, len(done), len(own), spreads))
    return found


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """None without values; those that are none are left out."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    if len(known) == 1:
        return Spread(float(known[0]))
    quantile = _T_975[len(known) - 2] if len(known) - 2 < len(_T_975) else _NORMAL_975
    return Spread(statistics.fmean(known), quantile * statistics.stdev(known) / math.sqrt(len(known)), len(known))
