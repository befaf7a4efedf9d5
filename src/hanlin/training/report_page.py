"""The page of a report: one HTML file that needs no other. Curves are drawn by its own script (report.html).

What comes from runs is escaped; the page's words are English and Chinese, as the reader's browser asks.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hanlin.training.run_curves import RunCurves

__all__ = ["CURVES", "DrawnCurve", "report_page"]

_MOST_POINTS = 2_000
"""Of a curve in the page; of each stretch of a longer one the least and the largest value are kept."""


class DrawnCurve(NamedTuple):
    """A metric as it is drawn; is_noisy: worth smoothing."""

    title: str
    chinese: str
    is_noisy: bool = True


# What no run has is left out.
CURVES = {
    "loss": DrawnCurve("training loss per token", "训练损失（每个词元）"),
    "eval_loss": DrawnCurve("evaluation loss per token", "评测损失（每个词元）", is_noisy=False),
    "lr": DrawnCurve("learning rate", "学习率", is_noisy=False),
    "grad_norm": DrawnCurve("gradient norm before clipping", "梯度范数（截断前）"),
    "tokens_per_second": DrawnCurve("tokens per second", "每秒词元数"),
    "mfu": DrawnCurve("MFU: share of the devices' peak that the model needs", "MFU：模型所需运算占设备峰值的比例"),
    "data_seconds": DrawnCurve("seconds that a step waits for its batch", "每步等待数据的秒数"),
    "memory_gib": DrawnCurve("memory held after a step, GiB", "每步之后占用的内存（GiB）", is_noisy=False),
}


_HEADS = {
    "run": "运行", "steps": "步数", "last loss": "最后的损失", "best eval_loss": "最低的 eval_loss",
    "median tokens_per_second": "tokens_per_second 的中位数", "median mfu": "mfu 的中位数", "weights": "权重",
    "task": "任务", "metric": "指标", "value": "值", "setting": "设置", "machine": "机器", "data": "数据",
    "rows read": "读入的行", "left out": "未采用", "samples": "样本", "tokens": "词元", "carry loss": "计入损失",
    "p50": "中位数", "max": "最长",
    "padding": "填充", "lengths": "长度分布",
}  # fmt: skip
"""Of the tables; names of runs stand beside them."""

_MACHINE = {
    "system": "系统", "device": "设备", "processes": "进程数", "cpu": "处理器", "cores": "核数", "threads": "线程数",
    "memory": "内存", "starts": "启动次数",
}  # fmt: skip
"""What a start says of its machine; names of programs stand beside them."""


def report_page(runs: Sequence[RunCurves], labels: Sequence[str], picture: bytes, *, watch_seconds: float = 0) -> str:
    """labels: what the picture calls the runs; picture: a PNG of the curves, for readers without JavaScript;
    watch_seconds: after which the page looks for a newer one of itself; 0: it is the last.
    """
    settings = list(dict.fromkeys(key for run in runs for key in run.settings))
    differing = [key for key in settings if len({repr(run.settings.get(key)) for run in runs}) > 1]
    parts = {
        "title": html.escape(", ".join(run.name for run in runs)),
        "results": _table(["run", "steps", *_result_names(runs)], _result_rows(runs, labels)),
        "picture": base64.b64encode(picture).decode(),
        "scores": _table(["run", "weights", "task", "metric", "value"], _score_rows(runs)),
        "differing": _settings_table(runs, differing),
        "settings": _settings_table(runs, settings),
        "machines": _machines(runs),
        "rows": _html_table(_DATA_HEADS, _data_rows(runs)),
        "watch": str(watch_seconds),
        "data": json.dumps(_data(runs), ensure_ascii=False).replace("<", "\\u003c"),  # "</script>" would end it
    }
    text = (files("hanlin.training") / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], text)


def _data(runs: Sequence[RunCurves]) -> Mapping[str, Any]:
    """What the script draws."""
    metrics = [
        {"name": name, "title": curve.title, "zh": curve.chinese, "noisy": curve.is_noisy}
        for name, curve in CURVES.items()
        if any(name in run.curves for run in runs)
    ]
    shown = [
        {
            "name": run.name,
            "curves": {name: _thinned(*points) for name, points in run.curves.items()},
            "samples": run.samples,
        }
        for run in runs
    ]
    return {"metrics": metrics, "runs": shown}


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most _MOST_POINTS of them; peaks stay."""
    size = -(-2 * len(steps) // _MOST_POINTS)
    if size <= 2:
        return list(steps), list(values)
    kept: list[int] = []
    for begin in range(0, len(steps), size):
        stretch = range(begin, min(begin + size, len(steps)))
        kept += sorted({min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)})
    return [steps[at] for at in kept], [values[at] for at in kept]


def _result_names(runs: Sequence[RunCurves]) -> list[str]:
    names = ["last loss", "best eval_loss", "median tokens_per_second", "median mfu"]
    return [name for name in names if any(name.split()[1] in run.curves for run in runs)]


def _result_rows(runs: Sequence[RunCurves], labels: Sequence[str]) -> list[list[str]]:
    rows = []
    for run, label in zip(runs, labels, strict=True):
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


def _score_rows(runs: Sequence[RunCurves]) -> list[list[str]]:
    return [
        [run.name, score.of, score.task, score.metric, "" if score.value is None else f"{score.value:.4g}"]
        for run in runs
        for score in run.scores
    ]


_DATA_HEADS = ["run", "data", "rows read", "left out", "samples", "tokens", "carry loss", "p10", "p50", "p90", "max",
               "padding", "lengths"]  # fmt: skip


def _data_rows(runs: Sequence[RunCurves]) -> Iterator[list[str]]:
    """HTML of what is known of the data of each run's last start."""
    for name, told in ((run.name, told) for run in runs for told in run.data):
        facts = [
            *(told.samples, told.tokens),
            f"{told.loss_tokens / max(told.tokens, 1):.1%}",
            *told.lengths,
            f"{told.padding:.1%}",
        ]
        why = "; ".join(f"{number:,}: {reason}" for reason, number in told.dropped.items())
        left_out = f'<span title="{html.escape(why)}">{sum(told.dropped.values()):,}</span>'
        named = [html.escape(name), html.escape(f"data.{told.part}"), f"{told.rows:,}", left_out]
        shown = [fact if isinstance(fact, str) else f"{fact:,}" for fact in facts]
        yield [*named, *shown, _bars(told.histogram)]


def _bars(histogram: Sequence[tuple[int, int]]) -> str:
    """A small picture of how many samples there are up to each length."""
    most = max((count for _, count in histogram), default=1)
    bars = "".join(
        f'<rect x="{10 * place}" y="{30 - 30 * count / most:.1f}" width="8" height="{30 * count / most:.1f}">'
        f"<title>≤ {longest:,}: {count:,}</title></rect>"
        for place, (longest, count) in enumerate(histogram)
    )
    return f'<svg class="bars" viewBox="0 0 {10 * max(len(histogram), 1)} 30">{bars}</svg>'


def _machines(runs: Sequence[RunCurves]) -> str:
    """Where each run was started last."""
    keys = list(dict.fromkeys(key for run in runs for key in run.machine))
    rows = [[_named(key), *(html.escape(run.machine.get(key, "")) for run in runs)] for key in keys]
    rows += [[_named("starts"), *(str(run.num_starts) for run in runs)]] if keys else []
    return _html_table(["machine", *(run.name for run in runs)], rows)


def _named(key: str) -> str:
    return f'<span data-zh="{html.escape(_MACHINE.get(key, key))}">{html.escape(key)}</span>'


def _settings_table(runs: Sequence[RunCurves], keys: Iterable[str]) -> str:
    rows = [[key, *(str(run.settings.get(key, "")) for run in runs)] for key in keys]
    return _table(["setting", *(run.name for run in runs)], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _html_table(head, ([html.escape(cell) for cell in row] for row in rows))


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """rows: of HTML."""
    rows = list(rows)
    if not rows:
        return '<p data-zh="无">none</p>'
    first = "".join(f'<th data-zh="{html.escape(_HEADS.get(cell, cell))}">{html.escape(cell)}</th>' for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{rest}</table>"
