"""Runs side by side: one HTML page that needs no other file, and its curves as a PNG.

matplotlib is imported when a page is made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from hanlin.core.files import replaced_file
from hanlin.training.report_page import CURVES, report_page
from hanlin.training.run_curves import RunCurves, read_run

__all__ = ["draw_curves", "picture_of", "read_run", "watch_report", "write_report"]

# The first one that is installed is used, so that Chinese names of runs can be read.
_FONTS = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "SimHei"]
_SMOOTH_STEPS = 50  # curves with more points than this are drawn pale, with their running mean on top


def write_report(folders: Sequence[Path], page: Path, *, watch_seconds: float = 0) -> tuple[Path, Path]:
    """Write the page, and the curves beside it as a PNG of the same name; returns both paths. watch_seconds: after
    which a page that is open looks for a newer one (0: never).

    Raises: DataError for a folder that is no run.
    """
    names = [Path(os.path.realpath(folder)).name for folder in folders]
    runs = [
        read_run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]
    picture = draw_curves(runs)
    text = report_page(runs, _labels(runs), picture, watch_seconds=watch_seconds)
    image = picture_of(page)
    for file, content in ((page, text.encode()), (image, picture)):
        with replaced_file(file) as stream:
            stream.write(content)
    return page, image


def watch_report(folders: Sequence[Path], page: Path, seconds: float) -> Generator[Path]:
    """Write the page whenever a run has gone on, looking every so many seconds, without an end; yields it each time.
    When that is ended (`close`), the page is written a last time and refreshes itself no more.
    """
    seen = None
    try:
        while True:
            if all(map(_has_begun, folders)) and (found := _state(folders)) != seen:
                seen = found
                yield write_report(folders, page, watch_seconds=seconds)[0]
            time.sleep(seconds)
    finally:
        if seen is not None:
            write_report(folders, page)


def _has_begun(folder: Path) -> bool:
    """Whether there is anything to show; of a run whose first step is not done there is not."""
    metrics = folder / "metrics.jsonl"
    return not (folder / "config.yaml").is_file() or (metrics.is_file() and metrics.stat().st_size > 0)


def _state(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Of the files that a page is made of: what changes when they do."""
    patterns, found = ("*.jsonl", "config.yaml", "evaluation/*/metrics.json"), []
    for file in sorted(file for folder in folders for pattern in patterns for file in folder.glob(pattern)):
        with suppress(FileNotFoundError):  # removed since it was found
            stat = file.stat()
            found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return found


def picture_of(page: Path) -> Path:
    """Where the curves of a page lie as a picture."""
    return page.with_suffix(".png")


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
            axes.set(title=CURVES[name].title, xlabel="step")
            axes.grid(alpha=0.3)
            for run_number, run in enumerate(runs):
                if name in run.curves:
                    look = {"label": labels[run_number], "color": f"C{run_number % 10}"}
                    _draw(axes, *run.curves[name], is_noisy=CURVES[name].is_noisy, **look)
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
