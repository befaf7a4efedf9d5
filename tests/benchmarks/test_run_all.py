"""benchmarks/run_all.py: what counts as a regression, and the tables of the pages, which say what the results say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROW = {"what": {"en": "a", "zh": "甲"}, "against": {"en": "b", "zh": "乙"}, "script": "one", "figures": ["full/ratio"]}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("run_all")


def write(folder: Path, ratio: Any, machine: str = "EPYC, torch 2") -> Path:
    folder.mkdir(exist_ok=True)
    figures = {"machine": machine, "date": "2026-01-02", "full": {"ratio": ratio}}
    (folder / "one.json").write_text(json.dumps(figures), "utf-8")
    return folder


def spread(median: float) -> dict[str, float]:
    return {"median": median, "least": median - 0.1, "most": median + 0.1}


def test_the_pages_say_what_the_results_say(bench: ModuleType) -> None:
    rows = yaml.safe_load((FOLDER / "figures.yaml").read_text("utf-8"))["rows"]
    for language, page in bench.PAGES.items():
        text = page.read_text("utf-8")
        assert bench.with_table(text, bench.table(rows, language)) == text, "run: python benchmarks/run_all.py --table"


def test_every_script_of_the_table_is_run(bench: ModuleType) -> None:
    figures = yaml.safe_load(bench.FIGURES.read_text("utf-8"))
    assert {row["script"] for row in figures["rows"]} == figures["arguments"].keys()
    assert all((FOLDER / f"{name}.py").is_file() for name in figures["arguments"])


@pytest.mark.parametrize(
    ("now", "machine", "targets", "fell"),
    [
        (spread(1.79), "EPYC, torch 3", [2], True),
        (spread(1.81), "EPYC, torch 3", [2], False),
        (spread(1.0), "Xeon, torch 2", [2], False),
        (1.0, "EPYC", [], False),
    ],
)
def test_a_ratio_that_fell_by_a_tenth_is_a_regression(
    bench: ModuleType, tmp_path: Path, now: Any, machine: str, targets: list[float], fell: bool
) -> None:
    kept, new = write(tmp_path / "kept", spread(2.0)), write(tmp_path / "new", now, machine)
    [change] = bench.compare([{**ROW, "targets": targets}], new, kept)
    assert change.fell is fell
    assert [change.fell for change in bench.compare([{**ROW, "targets": [2]}], new, tmp_path)] == [False]


def test_a_peer_that_is_not_installed_is_not_compared_with(bench: ModuleType, tmp_path: Path) -> None:
    new = write(tmp_path / "new", spread(2.0))
    rows = [{**ROW, "needs": "a_peer_of_old", "figures": ["full/over_peer"]}, {**ROW, "needs": "torch"}]
    assert [change.what for change in bench.compare(rows, new)] == ["one full/ratio"]


def test_a_table_has_the_figures_with_their_spread(bench: ModuleType, tmp_path: Path) -> None:
    row = {**ROW, "figures": ["full/ratio", "full/ratio/most"], "targets": [1.5, 1.5]}
    lines = bench.table([row], "zh", write(tmp_path, spread(2.0))).splitlines()
    assert lines[2] == "| 甲 | 乙 | 2.00 (1.90 - 2.10) / 2.10 | 1.5 | one | 2026-01-02 |"
    with pytest.raises(SystemExit, match="have no full/gone"):
        bench.table([{**ROW, "figures": ["full/gone"]}], "en", tmp_path)


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("import shutil; shutil.copy('now/one.json', sys.argv[-1])", 1, "fell by more than 10%: one full/ratio"),
        ("sys.exit('lacks a vocabulary')", 1, "failed: lacks a vocabulary"),
        ("print('needs peft', file=sys.stderr); sys.exit(77)", 0, "not run: needs peft"),
    ],
)
def test_all_are_run_and_what_failed_is_told(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    code: int,
    says: str,
) -> None:
    kept, home = write(tmp_path / "kept", spread(2.0)), tmp_path / "benchmarks"
    write(tmp_path / "now", spread(1.0))
    home.mkdir()
    (home / "one.py").write_text(f"import sys\n{body}\n", "utf-8")
    (tmp_path / "figures.yaml").write_text(
        yaml.safe_dump({"rows": [{**ROW, "targets": [2]}], "arguments": {"one": ""}})
    )
    monkeypatch.setattr(bench, "HERE", home)
    monkeypatch.setattr(bench, "FIGURES", tmp_path / "figures.yaml")
    monkeypatch.setattr(bench.compare, "__defaults__", (kept,))
    monkeypatch.setattr(sys, "argv", ["run_all.py"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == code
    shown = capsys.readouterr()
    assert says in shown.out + shown.err
