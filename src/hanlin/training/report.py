"""Runs side by side: one HTML page that needs no other file, and its curves as a PNG.

matplotlib is imported when a page is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hanlin.core.files import replaced_file
from hanlin.training.report_page import CURVES, report_page
from hanlin.training.run_curves import RunCurves, read_run

__all__ = ["draw_curves", "picture_of", "read_run", "write_report"]

# The first one that is installed is used, so that Chinese names of runs can be read.
_FONTS = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "SimHei"]
_SMOOTH_STEPS = 50  # curves with more points than this are drawn pale, with their running mean on top


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
    text = report_page(runs, _labels(runs), picture)
    image = picture_of(page)
    for file, content in ((page, text.encode()), (image, picture)):
        with replaced_file(file) as stream:
            stream.write(content)
    return page, image


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
