"""The page of `hanlin report`, in a real Chromium: from a file, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser

from hanlin.cli.main import main
from hanlin.core.errors import DataError
from hanlin.training.report import watch_report, write_report
from hanlin.training.report_page import _thinned

POINT = """const right = arguments[0].getBoundingClientRect().right;
    arguments[0].dispatchEvent(new PointerEvent("pointermove", {clientX: right - 5}))"""
HOSTILE = "</script><img src=x onerror='window.hit=1'>{{data}}"


def _write_run(folder: Path, lr: float, shift: float) -> Path:
    folder.mkdir(parents=True)
    steps = [{"step": n, "loss": 3 / n + shift + (n % 3) / 10, "lr": lr / n, "grad_norm": 1.0} for n in range(1, 61)]
    lines = [json.dumps(row) for row in (*steps, {"step": 60, "eval_loss": 1.5 + shift, "loss": float("nan")})]
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = f"train: {{lr: {lr}, steps: 60}}\nrun: {{folder: {json.dumps(HOSTILE)}}}\n"
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    texts = [{"step": step, "input": "春", "<ans>": f"{word}{HOSTILE}"} for step, word in ((20, "早"), (60, "晚"))]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, texts)) + '\n{"step": 70', encoding="utf-8")
    counts = {"rows": 1200, "read": 1200, "dropped": {HOSTILE: 7}}
    told = {"counts": counts, "samples": 1193, "tokens": 50_000, "loss_tokens": 20_000, "padding": 0.125,
            "lengths": {"p10": 5, "p50": 31, "p90": 77, "max": 99}, "histogram": [[50, 1000], [99, 193]]}  # fmt: skip
    starts = [{"time": "", "machine": {"device": f"cuda: {HOSTILE}", "torch": "2.13"}, "data": {"train": told}}]
    lines = [*map(json.dumps, starts), '{"machine": 3}', '{"machine": {}, "data": {"train": {"samples": "x"}}}', "[1"]
    endless = '{"rows": Infinity, "read": 1, "dropped": {}}'
    lines.append(f'{{"machine": {{}}, "data": {{"train": {{"counts": {endless}}}}}}}')
    (folder / "starts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    results = folder / "evaluation/best-12345678"
    results.mkdir(parents=True)
    (results / "metrics.json").write_text('{"generate": {"rouge_l": 0.4321, "mean": null}}', encoding="utf-8")
    (folder / "evaluation/damaged").mkdir()
    (folder / "evaluation/damaged/metrics.json").write_text('{"generate": [1', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    runs = [_write_run(folder / name, lr, shift) for name, lr, shift in (("full", 0.001, 0.0), ("微调", 0.01, 0.5))]
    written, _ = write_report(runs, folder / "report.html")
    return written.as_uri()


def _open(
    browser: Browser, page: str, language: str, size: tuple[int, int] = (1280, 800), scheme: str = "light"
) -> None:
    browser.complaints()
    browser.set(language, size, scheme)
    browser.driver.get(page)


def test_curves_scores_settings_and_texts_are_there(chromium: Browser, page: str) -> None:
    _open(chromium, page, "en")
    assert chromium.texts("figcaption b") == [
        "training loss per token",
        "evaluation loss per token",
        "learning rate",
        "gradient norm before clipping",
    ]
    assert len(chromium.all("#curve-loss path:not(.pale)")) == len(chromium.all("#curve-loss path.pale")) == 2
    assert len(chromium.all("#curve-lr path")) == 2  # not smoothed
    cells = chromium.texts("td")
    assert {"best-12345678", "rouge_l", "0.4321", "train.lr", "0.001", "0.01"} <= set(cells)
    assert {"1,200", "1,193", "50,000", "40.0%", "12.5%", f"cuda: {HOSTILE}", "2.13"} <= set(cells)
    assert len(chromium.all(".bars rect")) == 4
    assert chromium.texts("#texts th") == ["full", "微调"]
    assert json.loads(chromium.texts("#texts pre")[0]) == {"input": "春", "<ans>": f"晚{HOSTILE}"}
    assert chromium.js("return window.hit") is None
    assert chromium.complaints() == []


def test_what_is_seen_can_be_chosen(chromium: Browser, page: str) -> None:
    _open(chromium, page, "en")
    chromium.all("#runs input")[1].click()
    assert len(chromium.all("#curve-loss path:not(.pale)")) == 1
    chromium.js("const one = arguments[0]; one.value = 0; one.oninput()", chromium.one("#smooth"))
    assert not chromium.all("path.pale")
    before = chromium.one("#curve-loss path").get_attribute("d")
    chromium.one("#log").click()
    assert chromium.one("#curve-loss path").get_attribute("d") != before
    chromium.js("const one = arguments[0]; one.value = 0; one.oninput()", chromium.one("#step"))
    assert chromium.text("#at") == "20"
    assert "早" in chromium.text("#texts pre")
    chromium.js(POINT, chromium.one("#curve-eval_loss svg"))
    assert chromium.text("#curve-eval_loss figcaption span") == "step 60: full 1.5"
    assert chromium.complaints() == []


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_it_is_chinese_dark_and_fits_a_phone(size: tuple[int, int], chromium: Browser, page: str) -> None:
    _open(chromium, page, "zh-CN", size, "dark")
    assert chromium.texts("h2")[:2] == ["结果", "曲线"]
    assert chromium.text("figcaption b") == "训练损失（每个词元）"
    assert {"设备", "启动次数"} <= set(chromium.texts("td span"))
    red = chromium.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert int(red) < 60
    assert chromium.js("return document.documentElement.scrollWidth") <= size[0]


def test_a_watched_page_follows_the_run_and_stays_as_it_was_set(chromium: Browser, tmp_path: Path) -> None:
    folder = _write_run(tmp_path / "run", 0.1, 0.0)
    pages = watch_report([folder], folder / "report.html", 1)
    _open(chromium, next(pages).as_uri(), "en")
    # In one go, since the page may go away in between.
    chromium.js("document.getElementById('log').click(); const one = document.getElementById('step'); "
                "one.value = 0; one.oninput()")  # fmt: skip
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('\n{"step": 999, "loss": 0.5}')
    next(pages)
    last = "return JSON.parse(document.getElementById('data')?.textContent ?? '0').runs?.[0].curves.loss[0].at(-1)"
    chromium.wait(lambda: chromium.js(last) == 999)
    shown = "return ['log', 'at', 'live'].map((name) => document.getElementById(name))"
    assert chromium.js(f"{shown}.map((one) => [one.checked, one.value, one.hidden])") == [
        [True, "on", False], [None, "20", False], [None, None, False],
    ]  # fmt: skip
    pages.close()
    chromium.wait(lambda: chromium.js("return document.getElementById('live')?.hidden"))
    assert chromium.complaints() == []


def test_a_watched_run_may_have_no_steps_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("train: {lr: 0.1}\n", encoding="utf-8")
    naps = []

    def begin_at_the_second(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n', encoding="utf-8")

    monkeypatch.setattr("hanlin.training.report.time.sleep", begin_at_the_second)
    pages = watch_report([tmp_path], tmp_path / "report.html", 7)
    assert next(pages).is_file()
    assert naps == [7, 7]
    with pytest.raises(DataError, match="no run folder"):
        next(watch_report([tmp_path / "none"], tmp_path / "other.html", 7))


def test_ctrl_c_ends_the_watch_with_a_page_that_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        assert seconds == 3
        assert "const watch = 3," in (folder / "report.html").read_text("utf-8")
        raise KeyboardInterrupt

    folder = _write_run(tmp_path / "run", 0.1, 0.0)
    monkeypatch.setattr("hanlin.training.report.time.sleep", interrupt)
    assert main(["report", str(folder), "--watch", "3"]) == 0
    assert "const watch = 0," in (folder / "report.html").read_text("utf-8")


def test_a_long_curve_keeps_its_peaks() -> None:
    values = [0.0] * 100_000
    values[77_777] = 9.0
    steps, thinned = _thinned(range(1, 100_001), values)
    assert len(steps) == len(thinned) <= 2_000
    assert steps == sorted(steps)
    assert (77_778, 9.0) in zip(steps, thinned, strict=True)
