"""`hanlin compare` on tiny models: a grid that is interrupted, fails in parts and goes on; refusals; its numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from data_files import write_rows
from family_cases import Case, case_of

from hanlin.api.comparing import compare, planned_cells
from hanlin.api.comparison.grid import read_grid
from hanlin.api.comparison.page import write_comparison
from hanlin.api.comparison.results import CellResult, Measures, Spread, spread_of, summarise
from hanlin.api.comparison.running import Interrupted, run_here
from hanlin.cli.main import main
from hanlin.core.errors import ConfigError
from hanlin.formats.load import save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    folder = tmp_path_factory.mktemp("base")
    case = case_of("cpm1", folder)
    weights = {key: value.float() for key, value in case.model().named_parameters()}
    save_base(folder / "cpm1", case.family, case.config, weights, case.tokenizer)
    return folder / "cpm1", case


def write_grid(base: tuple[Path, Case], folder: Path, **changes: Any) -> Path:
    """Two methods and two seeds of one recipe; JSON is YAML."""
    rows = write_rows(folder / "rows.jsonl", list(base[1].records))
    recipe = {
        "model": {"family": "cpm1", "base": str(base[0])},
        "data": {"train": [str(rows)], "eval": [str(rows)], "max_length": 60, "cache": str(folder / "cache")},
        "train": {"steps": 2, "lr": 0.01, "schedule": "constant", "batch_size": 2, "eval_every": 1, "save_every": 1},
        "run": {"folder": "unused", "threads": 1},
    }
    (folder / "tiny.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    grid = {
        "folder": str(folder / "grid"),
        "recipes": {"小": str(folder / "tiny.yaml")},
        "methods": {
            "full": {"train.lr": 0.005},
            "lora": {"tuning": {"method": "lora", "rank": 2}},
            "ia3": {"tuning": "ia3"},
        },
        "seeds": [1, 2],
        **changes,
    }
    path = folder / "grid.yaml"
    path.write_text(json.dumps(grid, ensure_ascii=False), encoding="utf-8")
    return path


class Runner:
    """Runs commands in this process. stop, fail: what ends a command before it begins, by its words."""

    def __init__(
        self,
        stop: Callable[[Sequence[str]], bool] = lambda _: False,
        fail: Callable[[Sequence[str]], bool] = lambda _: False,
    ) -> None:
        self.stop, self.fail = stop, fail
        self.ran: list[str] = []

    def __call__(self, words: Sequence[str], output: Path) -> str:
        if self.stop(words):
            raise Interrupted
        if self.fail(words):
            return "out of memory"
        self.ran.append(f"{words[0]} {output.parent.parent.name}/{output.parent.name}")
        return "" if main(list(words)) == 0 else "it failed"


def of_cell(part: str, command: str = "train") -> Callable[[Sequence[str]], bool]:
    return lambda words: words[0] == command and any(part in word for word in words)


def test_a_grid_goes_on_where_it_was_and_tells_what_failed(base: tuple[Path, Case], tmp_path: Path) -> None:
    general = write_rows(tmp_path / "general.jsonl", [{"text": "床前明月光，疑是地上霜。"}])
    path = write_grid(base, tmp_path, general={"data": [str(general)]}, seeds=[1], score="loss.perplexity")
    first = Runner(stop=of_cell("ia3/seed1"), fail=of_cell("lora/seed1"))
    said: list[str] = []
    with pytest.raises(Interrupted):
        compare(path, said.append, run=first)
    assert any("小/lora/seed1: failed: train: out of memory" in line for line in said)
    table = (tmp_path / "grid/comparison.md").read_text("utf-8")
    assert "| 小 | full | 1/1 |" in table
    assert "小/lora/seed1: failed train: out of memory" in table
    assert "小/ia3/seed1: not yet" in table
    # What was done is not done again, what failed is; the base is asked once for all.
    second = Runner()
    results = compare(path, said.append, only=["*/lora/*"], run=second)
    assert second.ran == ["train lora/seed1", "evaluate lora/seed1", "evaluate lora/seed1"]
    assert sum("before" in line for line in said) == 1
    assert [one.state for one in results] == ["done", "done", "not yet"]
    full, lora = results[0].measures, results[1].measures
    assert full.trained == full.parameters == sum(weight.numel() for weight in base[1].model().parameters())
    assert None not in asdict(full).values()
    assert None not in asdict(lora).values()
    assert lora.trained < full.trained  # type: ignore[operator]
    assert lora.handed_on_bytes < full.handed_on_bytes  # type: ignore[operator]
    assert full.steps == 2
    assert full.general_before == lora.general_before
    assert full.forgetting not in (None, 0)
    scores = json.loads((tmp_path / "grid/cells/小/full/seed1/scores.json").read_text("utf-8"))
    assert full.score == scores["loss"]["perplexity"]
    lines = map(json.loads, (tmp_path / "grid/cells/小/full/seed1/metrics.jsonl").read_text("utf-8").splitlines())
    assert full.held_out_loss == min(line["eval_loss"] for line in lines if "eval_loss" in line)
    runs = list(csv.DictReader((tmp_path / "grid/runs.csv").open(encoding="utf-8")))
    assert [run["seed"] for run in runs] == ["1"] * 3
    page = (tmp_path / "grid/comparison.html").read_text("utf-8")
    assert page.count("<svg") == 2
    assert "http" not in page
    # Nothing is left to do, until a setting is another one.
    third = Runner(stop=of_cell("full/seed1"))
    compare(path, said.append, only=["*/full/*"], run=third)
    longer = write_grid(base, tmp_path, seeds=[1], set={"train.steps": 3})
    with pytest.raises(Interrupted):
        compare(longer, said.append, only=["*/full/*"], run=third)
    assert third.ran == []


def test_the_table_is_written_after_each_cell(base: tuple[Path, Case], tmp_path: Path) -> None:
    there: list[bool] = []

    def look(words: Sequence[str], output: Path) -> str:
        there.append((tmp_path / "grid/comparison.md").exists())
        return "out of memory"

    compare(write_grid(base, tmp_path, seeds=[1]), lambda _: None, run=look)
    assert there == [False, True, True]


def test_every_cell_is_checked_before_one_starts(base: tuple[Path, Case], tmp_path: Path) -> None:
    methods = {"good": {}, "bad": {"train.lr": -1}, "worse": {"tuning": {"method": "lora", "targets": ["nothing"]}}}
    path, runner = write_grid(base, tmp_path, methods=methods), Runner()
    with pytest.raises(ConfigError, match="none was started") as error:
        compare(path, lambda _: None, run=runner)
    assert "小/bad/seed1 and 1 more: methods.bad: train.lr" in str(error.value)
    assert "小/worse/seed1: " in str(error.value)
    assert "nothing" in str(error.value)
    assert runner.ran == []
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": [1, 1]}, "seeds: one stands there twice"),
        ({"seeds": []}, "seeds: expected at least 1, found []"),
        ({"seeds": [True]}, "seeds.0: expected a whole number, found True"),
        ({"recipes": {}}, "recipes: expected at least 1, found {}"),
        ({"recipes": {"a": None}}, "recipes.a: expected an object, found None"),
        ({"methods": {"full": [1]}}, "methods.full: expected an object, found [1]"),
        ({"recipes": {"a/b": "tiny.yaml"}}, "'a/b': names are of letters"),
        (
            {"recipes": {"a": {"recipe": "tiny.yaml", "methods": ["loro"]}}},
            "there is no method 'loro'; did you mean 'lora'",
        ),
        ({"recipes": {"a": "nowhere.yaml"}}, "nowhere.yaml: there is no such recipe"),
        ({"methods": {"full": {"run.seed": 3}}}, "methods.full: run.seed is set by the grid itself"),
        ({"set": {"run": {"folder": "x"}}}, "set: run.folder is set by the grid itself"),
        ({"methds": {}}, "there is no such key; did you mean 'methods'"),
        ({"score": "likelihood.accuracy"}, "score: likelihood.accuracy, but evaluate.tasks are loss"),
        ({"score": "accuracy"}, "no TASK.METRIC"),
        ({"general": {"data": ["nowhere.jsonl"]}}, "there is no nowhere.jsonl"),
    ],
)
def test_bad_grids_are_refused(changes: dict[str, Any], text: str, base: tuple[Path, Case], tmp_path: Path) -> None:
    path = write_grid(base, tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        planned_cells(read_grid(path))
    assert text in str(error.value)


def test_a_recipe_is_no_grid(base: tuple[Path, Case], tmp_path: Path) -> None:
    write_grid(base, tmp_path)
    with pytest.raises(ConfigError, match="this is a recipe"):
        read_grid(tmp_path / "tiny.yaml")


def test_the_command_shows_cells_and_runs_processes(
    base: tuple[Path, Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_grid(base, tmp_path, methods={"full": {}}, seeds=[1])
    assert main(["compare", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out == "小/full/seed1: not yet\n1 cells, 0 done\n"
    assert not (tmp_path / "grid").exists()
    log = tmp_path / "compare.log"
    assert run_here(["help", "train.lr"], log) == ""
    assert "Peak learning rate" in log.read_text("utf-8")
    assert run_here(["train", "/nowhere.yaml"], log) == "/nowhere.yaml: there is no such recipe"


def test_intervals_are_student_s() -> None:
    found = spread_of([1.0, 2.0, 3.0, None])
    assert found is not None
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.303 / 3**0.5)
    assert spread_of([5.0]) == Spread(5.0)
    assert spread_of([None]) is None


def test_a_plot_tells_recipes_by_form_and_methods_by_colour(tmp_path: Path) -> None:
    results = [
        CellResult(recipe, method, 1, "done", measures=Measures(score=score, trained=1000, peak_gib=2.0))
        for recipe, method, score in (("甲", "lora", 0.1), ("甲", "full", 0.2), ("乙", "lora", 0.3))
    ]
    paths = write_comparison(tmp_path, "grid", results)
    pictures = [path for path in paths if path.suffix == ".svg"]
    assert [path.name for path in pictures] == ["comparison_trained.svg", "comparison_memory.svg"]
    for path in pictures:
        marks = ElementTree.parse(path).getroot().findall(".//{*}g/{*}path")
        forms, colours = ([mark.attrib[name] for mark in marks] for name in ("d", "fill"))
        assert forms[0] == forms[1] != forms[2]
        assert colours[0] == colours[2] != colours[1]
        texts = [text.text for text in ElementTree.parse(path).getroot().findall("{*}text")]
        assert [text for text in texts if text in {"lora", "full", "甲", "乙"}] == ["lora", "full", "甲", "乙"]
    write_comparison(tmp_path, "grid", results[:2])
    assert "甲" not in (tmp_path / "comparison_trained.svg").read_text("utf-8").replace("<title>甲", "")


def test_a_page_shows_names_as_they_are(tmp_path: Path) -> None:
    results = [
        CellResult("<b>", "lora", seed, "done", measures=Measures(score=seed / 10, trained=1000, peak_gib=2.0))
        for seed in (1, 2)
    ]
    write_comparison(tmp_path, "a & b", [*results, CellResult("<b>", "full", 1, "failed", reason="<script>")])
    page = (tmp_path / "comparison.html").read_text("utf-8")
    assert "<b>" not in page
    assert "<script>" not in page
    assert "a &amp; b" in page
    [lora, full] = summarise([*results, CellResult("<b>", "full", 1, "failed")])
    assert (lora.done, full.done, full.spreads) == (2, 0, {})
