"""What is shown of a run: its curves, settings, scores and texts, from the files of its folder."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.recipe.yaml12 import YamlError, parse_yaml
from hanlin.training.report_page import CURVES

__all__ = ["STARTS", "RunCurves", "Score", "read_run"]

log = logging.getLogger(__name__)

STARTS = "starts.jsonl"
"""In the run folder: when, where and on which data it was started; a line for each start."""

_MOST_TEXTS = 5_000
"""Lines of samples.jsonl that a page holds, the newest."""


@dataclass(frozen=True)
class Score:
    """One number of an evaluation; of: the folder of its results, which tells weights and data apart."""

    of: str
    task: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class DataFacts:
    """Of the data of a start: part: train or eval; lengths: p10, p50, p90 and max, in tokens; histogram: samples up to
    each length; padding: share of the packed rows that is empty.
    """

    part: str
    rows: int
    dropped: Mapping[str, int]
    samples: int
    tokens: int
    loss_tokens: int
    lengths: Sequence[int]
    padding: float
    histogram: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class RunCurves:
    """One run: metric -> (steps, values), and its settings by dotted key; samples: step and text, in their order.

    num_starts: how often it was started; machine, data: of the last one.
    """

    name: str
    curves: Mapping[str, tuple[list[int], list[float]]]
    settings: Mapping[str, Any]
    scores: Sequence[Score] = ()
    samples: Sequence[tuple[int, str]] = ()
    num_starts: int = 0
    machine: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[DataFacts] = ()


def read_run(folder: Path, name: str = "") -> RunCurves:
    """The curves and settings of a run folder; name: what to call it (default: the folder's name).

    Raises: DataError.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{folder}: no run folder, it has no metrics.jsonl (written by hanlin train)")
    values: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    lines = path.read_bytes().splitlines()
    found = [_points(line) for line in lines]
    if damaged := [number for number, points in enumerate(found[:-1], start=1) if points is None]:
        log.warning("%s:%d: %d of %d lines cannot be read and are left out", path, damaged[0], len(damaged), len(lines))
    for points in found:
        for metric, step, value in points or ():
            values[metric][step] = value  # a resumed run writes its last steps again
    curves = {
        metric: (sorted(by_step), [by_step[step] for step in sorted(by_step)])
        for metric, by_step in values.items()
        if by_step
    }
    if not curves:
        raise DataError(f"{path}: no metrics yet; train first")
    scores, samples = list(_scores(folder / "evaluation")), list(_samples(folder / "samples.jsonl"))
    label = name or Path(os.path.realpath(folder)).name
    starts = list(_starts(folder / STARTS))
    machine, data = starts[-1] if starts else ({}, ())
    settings = _settings(folder / "config.yaml")
    return RunCurves(label, curves, settings, scores, samples[-_MOST_TEXTS:], len(starts), machine, data)


def _points(line: bytes) -> list[tuple[str, int, float]] | None:
    """Metric, step and value of what a line holds of the curves; None for a line that cannot be read.

    The last one may be such a line, where the run was killed.
    """
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return None
        found = [(name, row["step"], float(row[name])) for name in CURVES if isinstance(row.get(name), int | float)]
        return [point for point in found if math.isfinite(point[2])]
    except (ValueError, OverflowError, RecursionError):
        return None


def _scores(folder: Path) -> Iterator[Score]:
    """Of all evaluations, by name; a file that is none is told and left out."""
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            tasks = json.loads(path.read_bytes())
            for task, values in tasks.items():
                for metric, value in values.items():
                    yield Score(path.parent.name, task, metric, None if value is None else float(value))
        except (ValueError, TypeError, AttributeError, RecursionError):
            log.warning("%s: cannot be read and is left out", path)


def _samples(path: Path) -> Iterator[tuple[int, str]]:
    """Step and record of each line; one that was cut off is left out."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if isinstance(step, int):
            yield step, json.dumps(row, ensure_ascii=False)


def _starts(path: Path) -> Iterator[tuple[Mapping[str, str], Sequence[DataFacts]]]:
    """Machine and data of each start; a line that is none is left out."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            machine = {str(name): str(value) for name, value in row["machine"].items()}
            data = [_facts(part, report) for part, report in row["data"].items()]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            log.warning("%s: a line cannot be read and is left out", path)
            continue
        yield machine, data


def _facts(part: str, report: Any) -> DataFacts:
    counts = report["counts"]
    return DataFacts(
        part,
        int(counts["rows"] or counts["read"]),
        {str(why): int(number) for why, number in counts["dropped"].items()},
        int(report["samples"]),
        int(report["tokens"]),
        int(report["loss_tokens"]),
        [int(report["lengths"][name]) for name in ("p10", "p50", "p90", "max")],
        float(report["padding"]),
        [(int(longest), int(count)) for longest, count in report["histogram"]],
    )


def _settings(path: Path) -> dict[str, Any]:
    """Raises: DataError."""
    if not path.is_file():
        return {}
    try:
        groups, _, _ = parse_yaml(path.read_text(encoding="utf-8"))
        return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    except (UnicodeDecodeError, YamlError, AttributeError) as error:
        raise DataError(f"{path}: no recipe can be read from it ({error}); restore it, or remove it") from None
