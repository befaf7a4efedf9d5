"""A comparison to read: a table for the terminal, Markdown, CSV and JSON, and one HTML page with two plots (SVG)."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hanlin.api.comparison.results import CellResult, Spread, Summary, summarise
from hanlin.core.files import replaced_file

__all__ = ["HEAD", "NAME", "table_rows", "write_comparison"]

NAME = "comparison"
"""Of the files in the folder of a grid, and runs.csv."""


@dataclass(frozen=True)
class _Column:
    """measure: of `Summary.spreads`; shown: how its mean is written."""

    title: str
    measure: str
    shown: Callable[[float], str]


_COLUMNS = (
    _Column("score", "score", "{:.4g}".format),
    _Column("held-out loss", "held_out_loss", "{:.4f}".format),
    _Column("forgetting", "forgetting", "{:+.4f}".format),
    _Column("trained", "trained", "{:,.0f}".format),
    _Column("peak GiB", "peak_gib", "{:.2f}".format),
    _Column("minutes", "minutes", "{:.1f}".format),
    _Column("CPU minutes", "cpu_minutes", "{:.1f}".format),
    _Column("tokens/s", "tokens_per_second", "{:,.0f}".format),
    _Column("MB", "handed_on_bytes", lambda value: f"{value / 1e6:,.3g}"),
)
_WITH_INTERVAL = ("score", "held_out_loss", "forgetting")
HEAD = ("recipe", "method", "runs", *(column.title for column in _COLUMNS))

_NOTE = (
    "Means over the runs of a row, one for each seed; ± is the half width of the 95 % confidence interval (Student's "
    "t). Forgetting: by how much the loss of general text has risen; trained: parameters; MB: of what is handed on."
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 75rem; margin: 2rem auto }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }}
td, th {{ border: 1px solid #ccc; padding: .2rem .6rem; text-align: right; white-space: nowrap }}
td:nth-child(-n+2), th:nth-child(-n+2) {{ text-align: left }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem }}
svg {{ flex: 1 1 30rem; max-width: 45rem }}
svg text {{ font: 12px system-ui, "Noto Sans CJK SC", sans-serif; fill: currentColor }}
.failed td {{ text-align: left; white-space: normal }}
</style></head><body><h1>{title}</h1>
{table}
<p>{note}</p>
<div class="plots">{plots}</div>
{failed}
</body></html>
"""


def table_rows(results: Sequence[CellResult]) -> list[list[str]]:
    """Below `HEAD`, a row for each recipe and method."""
    return [
        [one.recipe, one.method, f"{one.done}/{one.cells}", *(_shown(one, column) for column in _COLUMNS)]
        for one in summarise(results)
    ]


def _shown(summary: Summary, column: _Column) -> str:
    spread = summary.spreads.get(column.measure)
    if spread is None:
        return ""
    text = column.shown(spread.mean)
    if column.measure not in _WITH_INTERVAL or spread.half_width is None:
        return text
    return f"{text} ± {spread.half_width:.2g}"


def write_comparison(folder: Path, title: str, results: Sequence[CellResult]) -> list[Path]:
    """Write comparison.md, .csv, .json, .html, its plots and runs.csv into the folder of a grid; returns them."""
    rows, failed = table_rows(results), [one for one in results if one.state != "done"]
    summaries = summarise(results)
    contents = {
        f"{NAME}.md": _markdown(title, rows, failed),
        f"{NAME}.csv": _csv(HEAD, rows),
        "runs.csv": _runs_csv(results),
        f"{NAME}.json": _json(results),
        f"{NAME}.html": _html(title, rows, failed, summaries),
        **{f"{NAME}_{name}.svg": _picture(plot) for name, plot in _plots(summaries).items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        with replaced_file(folder / name) as stream:
            stream.write(text.encode())
    return [folder / name for name in contents]


def _markdown(title: str, rows: Sequence[Sequence[str]], failed: Sequence[CellResult]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    sides = ["---", "---", *["---:"] * (len(HEAD) - 2)]
    text = [f"# {title}", "", line(HEAD), line(sides), *map(line, rows), "", _NOTE]
    if failed:
        text += ["", "## Not done", *(f"- {one.name}: {one.state} {one.reason}".rstrip() for one in failed)]
    return "\n".join(text) + "\n"


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([head, *rows])
    return stream.getvalue()


def _runs_csv(results: Sequence[CellResult]) -> str:
    names = list(asdict(results[0].measures)) if results else []
    rows = [
        [one.recipe, one.method, one.seed, one.state, one.reason, *_blank_nones(asdict(one.measures), names)]
        for one in results
    ]
    return _csv(["recipe", "method", "seed", "state", "reason", *names], rows)


def _blank_nones(values: Mapping[str, object], names: Sequence[str]) -> list[object]:
    return ["" if values[name] is None else values[name] for name in names]


def _json(results: Sequence[CellResult]) -> str:
    content = {"summary": [asdict(one) for one in summarise(results)], "runs": [asdict(one) for one in results]}
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


# --- the page ---


def _html(title: str, rows: Sequence[Sequence[str]], failed: Sequence[CellResult], summaries: Sequence[Summary]) -> str:
    lost = ""
    if failed:
        table = _table(["run", "state", "reason"], [[one.name, one.state, one.reason] for one in failed])
        lost = f'<h2>Not done</h2><div class="failed">{table}</div>'
    return _PAGE.format(
        title=html.escape(title),
        table=_table(HEAD, rows),
        note=html.escape(_NOTE),
        plots="".join(_plots(summaries).values()),
        failed=lost,
    )


def _plots(summaries: Sequence[Summary]) -> dict[str, str]:
    """By the ends of their files' names; none without points."""
    plots = {
        "trained": _plot(summaries, "trained", "trained parameters", is_log=True),
        "memory": _plot(summaries, "peak_gib", "peak memory, GiB"),
    }
    return {name: plot for name, plot in plots.items() if plot}


def _picture(plot: str) -> str:
    """A plot as a file of its own, on white."""
    head = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, Noto Sans CJK SC, sans-serif" font-size="12"'
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    return plot.replace("<svg ", f"<svg {head} ", 1).replace(">", f">{ground}", 1) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{rest}</table>"


_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 600, 380, 70, 50, 30, 130
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's bright scheme, which the colour-blind tell apart."""
_MARKS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "M-5 -5h10v10h-10z", "M0 -6l6 10.5h-12z", "M0 -7l6 7l-6 7l-6 -7z",
    "M0 6l6 -10.5h-12z",
)  # fmt: skip
"""Round, square, triangle, rhombus, triangle upside down."""


@dataclass(frozen=True)
class _Axis:
    """Values to places in a picture. low, high: as they are drawn, logarithms where is_log."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    @staticmethod
    def of(values: Sequence[float], begin: float, end: float, *, is_log: bool = False) -> _Axis:
        known = [math.log10(value) if is_log else value for value in values]
        low, high = min(known), max(known)
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return _Axis(low - room, high + room, begin, end, is_log)

    def drawn_at(self, value: float) -> float:
        drawn = math.log10(value) if self.is_log else value
        return self.begin + (drawn - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Some round values, as they are."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 5)
        if self.is_log:
            step = max(1.0, round(step))
        first = math.ceil(self.low / step)
        found = [number * step for number in range(first, math.floor(self.high / step) + 1)]
        if self.is_log and not found:
            found = [(self.low + self.high) / 2]
        return [10**tick if self.is_log else tick for tick in found]


def _plot(summaries: Sequence[Summary], measure: str, title: str, *, is_log: bool = False) -> str:
    """Score against a measure, a point with its interval for each recipe (form) and method (colour); empty without
    points.
    """
    points = [
        (one, one.spreads["score"], one.spreads[measure].mean)
        for one in summaries
        if "score" in one.spreads and measure in one.spreads and (not is_log or one.spreads[measure].mean > 0)
    ]
    if not points:
        return ""
    across = _Axis.of([x for _, _, x in points], _LEFT, _WIDTH - _RIGHT, is_log=is_log)
    up = _Axis.of([edge for _, score, _ in points for edge in _edges(score)], _HEIGHT - _BOTTOM, _TOP)
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(dict.fromkeys(p[0].method for p in points))}
    marks = {name: _MARKS[at % len(_MARKS)] for at, name in enumerate(dict.fromkeys(p[0].recipe for p in points))}
    drawn = [*_frame(across, up, title), *_legend(colours, marks)]
    for one, score, x in points:
        heights = [up.drawn_at(value) for value in (score.mean, *_edges(score))]
        mark = _mark(marks[one.recipe], across.drawn_at(x), heights[0], colours[one.method])
        drawn += _point(across.drawn_at(x), heights, colours[one.method], mark, f"{one.recipe} {one.method}")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="score by {title}">{"".join(drawn)}</svg>'


def _edges(score: Spread) -> tuple[float, float]:
    width = score.half_width or 0.0
    return score.mean - width, score.mean + width


def _point(x: float, heights: Sequence[float], colour: str, mark: str, label: str) -> list[str]:
    _, low, high = heights
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="2"/>',
        f"<g><title>{html.escape(label)}</title>{mark}</g>",
    ]


def _mark(form: str, x: float, y: float, colour: str) -> str:
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{form}" fill="{colour}"/>'


def _legend(colours: Mapping[str, str], marks: Mapping[str, str]) -> list[str]:
    """Methods by their colours; where there are several recipes, these by their forms."""
    grey, round_mark = "#666", _MARKS[0]
    lines = [(round_mark, colour, name) for name, colour in colours.items()]
    lines += [(mark, grey, name) for name, mark in marks.items()] if len(marks) > 1 else []
    x, drawn = _WIDTH - _RIGHT + 20, []
    for number, (form, colour, name) in enumerate(lines):
        y = _TOP + 20 * number + (8 if number >= len(colours) else 0)
        drawn += [_mark(form, x, y, colour), f'<text x="{x + 11}" y="{y + 4}">{html.escape(name)}</text>']
    return drawn


def _frame(across: _Axis, up: _Axis, title: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    drawn = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>']
    for tick in across.ticks():
        x = across.drawn_at(tick)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="currentColor"/>')
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{_number(tick)}</text>')
    for tick in up.ticks():
        y = up.drawn_at(tick)
        drawn.append(f'<line x1="{_LEFT - 5}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        drawn.append(f'<text x="{_LEFT - 9}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    drawn.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{title}</text>')
    drawn.append(f'<text x="{_LEFT}" y="{_TOP - 12}" text-anchor="middle">score</text>')
    return drawn


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
