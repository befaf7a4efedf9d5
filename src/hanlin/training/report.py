"""Runs side by side: one HTML page that needs no other file, and its curves as a PNG.

Reads `metrics.jsonl` and `config.yaml` of run folders. matplotlib is imported when a page is made.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file
from hanlin.recipe.yaml12 import YamlError, parse_yaml

__all__ = ["draw_curves", "picture_of", "read_run", "write_report"]

log = logging.getLogger(__name__)

# Metric -> title of its curve; what no run has is left out.
CURVES = {
    "loss": "training loss per token",
    "eval_loss": "evaluation loss per token",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_second": "tokens per second",
    "data_seconds": "seconds that a step waits for its batch",
}
# The first one that is installed is used, so that Chinese names of runs can be read.
_FONTS = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "SimHei"]
_SMOOTH_STEPS = 50  # curves with more points than this are drawn pale, with their running mean on top

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 75rem; margin: 2rem auto }}
img {{ width: 100% }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; vertical-align: top }}
</style></head><body><h1>{title}</h1>
<h2>Results</h2>{results}
<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{picture}">
<h2>Settings that differ</h2>{settings}
</body></html>
"""


@dataclass(frozen=True)
class RunCurves:
    """One run: metric -> (steps, values), and its settings by dotted key."""

    name: str
    curves: Mapping[str, tuple[list[int], list[float]]]
    settings: Mapping[str, Any]


def write_report(folders: Sequence[Path], page: Path) -> tuple[Path, Path]:
    """Write the page, and the curves beside it as a PNG of the same name; returns both paths.

    Raises: DataError for a folder that is no run.
    """
    names = [Path(os.path.realpath(folder)).name for folder in folders]
    runs = [
        read_run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]
    picture = draw_curves(runs)
    text = _PAGE.format(
        title=html.escape(", ".join(run.name for run in runs)),
        results=_table(["run", "steps", *_result_names(runs)], _result_rows(runs)),
        picture=base64.b64encode(picture).decode(),
        settings=_settings_table(runs),
    )
    image = picture_of(page)
    for file, content in ((page, text.encode()), (image, picture)):
        with replaced_file(file) as stream:
            stream.write(content)
    return page, image


def picture_of(page: Path) -> Path:
    """Where the curves of a page lie as a picture."""
    return page.with_suffix(".png")


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
    return RunCurves(name or Path(os.path.realpath(folder)).name, curves, _settings(folder / "config.yaml"))


def draw_curves(runs: Sequence[RunCurves]) -> bytes:
    """All curves as one PNG, runs in colours."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in CURVES if any(name in run.curves for run in runs)]
    labels = _labels(runs)
    with rc_context({"font.sans-serif": [*_installed_fonts(), "DejaVu Sans"], "axes.unicode_minus": False}):
        figure = Figure(figsize=(11, 3.2 * -(-len(names) // 2)), layout="constrained")
        FigureCanvasAgg(figure)
        for number, name in enumerate(names, start=1):
            axes = figure.add_subplot(-(-len(names) // 2), 2, number)
            axes.set(title=CURVES[name], xlabel="step")
            axes.grid(alpha=0.3)
            for run_number, run in enumerate(runs):
                if name in run.curves:
                    look = {"label": labels[run_number], "color": f"C{run_number % 10}"}
                    _draw(axes, *run.curves[name], is_noisy=name != "lr", **look)
            axes.legend()
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axes: Any, steps: Sequence[int], values: Sequence[float], *, is_noisy: bool, **look: Any) -> None:
    if len(steps) <= _SMOOTH_STEPS or not is_noisy:
        axes.plot(steps, values, marker="." if len(steps) < 3 else "", **look)
        return
    axes.plot(steps, values, alpha=0.25, color=look["color"])
    axes.plot(steps, _running_mean(values), **look)


def _running_mean(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential mean, corrected for its start."""
    means, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = keep * mean + (1 - keep) * value
        means.append(mean / (1 - keep**count))
    return means


def _labels(runs: Sequence[RunCurves]) -> list[str]:
    """The runs' names; numbers where no font can show them."""
    has_chinese = bool(_installed_fonts())
    return [
        run.name if run.name.isascii() or has_chinese else f"run {number}" for number, run in enumerate(runs, start=1)
    ]


def _installed_fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [name for name in _FONTS if name in installed]


def _points(line: bytes) -> list[tuple[str, int, float]] | None:
    """Metric, step and value of what a line holds of the curves; None for a line that cannot be read.

    The last one may be such a line, where the run was killed.
    """
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return None
        return [(name, row["step"], float(row[name])) for name in CURVES if isinstance(row.get(name), int | float)]
    except (ValueError, OverflowError, RecursionError):
        return None


def _settings(path: Path) -> dict[str, Any]:
    """Raises: DataError."""
    if not path.is_file():
        return {}
    try:
        groups, _, _ = parse_yaml(path.read_text(encoding="utf-8"))
        return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    except (UnicodeDecodeError, YamlError, AttributeError) as error:
        raise DataError(f"{path}: no recipe can be read from it ({error}); restore it, or remove it") from None


def _result_names(runs: Sequence[RunCurves]) -> list[str]:
    names = ["last loss", "best eval_loss", "median tokens_per_second"]
    return [name for name in names if any(name.split()[1] in run.curves for run in runs)]


def _result_rows(runs: Sequence[RunCurves]) -> list[list[str]]:
    rows = []
    for run, label in zip(runs, _labels(runs), strict=True):
        row = [
            run.name if label == run.name else f"{run.name} ({label})",
            f"{max(steps[-1] for steps, _ in run.curves.values()):,}",
        ]
        for name in _result_names(runs):
            kind, metric = name.split()
            row.append(_result(kind, run.curves.get(metric, ([], []))[1]))
        rows.append(row)
    return rows


def _result(kind: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    value = {"last": values[-1], "best": min(values), "median": sorted(values)[len(values) // 2]}[kind]
    return f"{value:,.4g}"


def _settings_table(runs: Sequence[RunCurves]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    differing = [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]
    if not differing:
        return "<p>none</p>"
    rows = [[key, *(str(run.settings.get(key, "")) for run in runs)] for key in differing]
    return _table(["setting", *(run.name for run in runs)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{rest}</table>"
