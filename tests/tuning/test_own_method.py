"""A tuning method in one file outside the package (loha.py), named by its path: by commands, on several families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from family_cases import Case, case_of
from ranks import run_ranks

from hanlin.adapters.opening import is_adapter
from hanlin.checking import check_file
from hanlin.cli.main import main
from hanlin.formats.files import open_weights
from hanlin.formats.load import save_base
from hanlin.recipe.reading import load_recipe
from hanlin.run.assemble import assemble

LOHA = Path(__file__).parents[2] / "examples" / "loha.py"
FAMILIES = ["chatglm2", "cpm2", "cpm_bee"]


@pytest.fixture(scope="module")
def home_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the tiny base of a family and a recipe that tunes it, made once."""
    homes: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in homes:
            homes[family] = tmp_path_factory.mktemp(family)
            write_recipe(case_of(family, homes[family]), homes[family])
        return homes[family]

    return make


def write_recipe(case: Case, home: Path) -> None:
    weights = {name: weight.detach().float() for name, weight in case.model().named_parameters()}
    save_base(home / "base", case.family, case.config, weights, case.tokenizer)
    rows = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in case.records)
    (home / "rows.jsonl").write_text(rows, "utf-8")
    data: dict[str, Any] = {"train": str(home / "rows.jsonl"), "cache": str(home / "cache"), "pack": False}
    data["max_length"] = min(getattr(case.config, "max_length", 256), 256)
    recipe = {
        "model": {"family": case.name, "base": str(home / "base")},
        "data": {**data, "options": dict(case.options)},
        "tuning": {"method": str(LOHA)},
        "train": {"steps": 6, "batch_size": 2, "lr": 0.05, "schedule": "constant", "save_every": 3},
        "evaluate": {"tasks": ["loss"], "data": str(home / "rows.jsonl")},
        "generate": {"method": "greedy", "max_new_tokens": 4},
        "run": {"folder": str(home / "run"), "threads": 1, "device": "cpu", "log_every": 1},
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")


def words(home: Path, run: str, *changes: str) -> list[str]:
    return [str(home / "recipe.yaml"), f"run.folder={home / run}", *changes]


def trusted(home: Path, run: str, *changes: str) -> list[str]:
    """The words of a command that may run the method that the recipe names."""
    return [*words(home, run, *changes), "--trust-code"]


def losses(home: Path, run: str) -> list[float]:
    rows = map(json.loads, (home / run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def score(home: Path, *arguments: str) -> float:
    assert main(["evaluate", *arguments]) == 0
    return json.loads((home / "run/evaluation/metrics.json").read_text("utf-8"))["loss"]["loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_goes_on_and_is_scored_and_asked(
    family: str, home_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = home_of(family)
    assert main(["train", *trusted(home, "run")]) == 0
    assert main(["train", *trusted(home, "part", "train.steps=3")]) == 0
    assert main(["train", *trusted(home, "part")]) == 0
    assert losses(home, "part") == pytest.approx(losses(home, "run"), rel=1e-6)
    said = [f"run.folder={home / 'run'}", "train.precision=fp32"]  # what auto is on a CPU
    assert load_recipe(home / "run") == load_recipe(home / "recipe.yaml", said)

    last = home / "run/last"
    assert is_adapter(last)
    vectors = open_weights(last)
    assert {name.rpartition(".")[2] for name in vectors} == {"loha_A1", "loha_A2", "loha_B1", "loha_B2"}
    assert any(vectors[name].any() for name in vectors if name.endswith("loha_B2"))
    tuned, untuned = score(home, *trusted(home, "run")), score(home, *trusted(home, "run"), "--weights", "base")
    assert tuned < untuned

    record = (home / "rows.jsonl").read_text("utf-8").splitlines()[0]
    capsys.readouterr()
    assert main(["generate", *trusted(home, "run"), "--record", record]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_adapter_is_copied_merged_and_shown(
    family: str, home_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = home_of(family)
    if not (home / "run/last").exists():
        assert main(["train", *trusted(home, "run")]) == 0
    base, last, own = str(home / "base"), str(home / "run/last"), ["--tuning", str(LOHA)]
    tuned = score(home, *trusted(home, "run"))
    assert main(["convert", last, str(home / "copy"), "--base", base, *own]) == 0
    assert score(home, *trusted(home, "run"), "--weights", str(home / "copy")) == tuned
    assert main(["convert", base, str(home / "merged"), "--merge", last, *own]) == 0
    assert score(home, *trusted(home, "run"), "--weights", str(home / "merged")) == pytest.approx(tuned, rel=1e-4)
    capsys.readouterr()
    assert main(["inspect", last, *own]) == 0
    assert "our adapter folder" in capsys.readouterr().out
    assert main(["convert", last, str(home / "peft"), "--base", base, "--to", "peft", *own]) == 2
    assert "is written as adapter" in capsys.readouterr().err


# ChatGLM2 has fewer heads of keys than four ranks, which then share them.
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("chatglm2", ("tensor=4",)),
        ("chatglm2", ("tensor=2", "sequence_parallel=true")),
        ("cpm_bee", ("tensor=2",)),
        ("cpm_bee", ("pipe=2",)),
    ],
)
def test_a_layout_changes_no_loss(family: str, layout: tuple[str, ...], home_of: Callable[[str], Path]) -> None:
    home = home_of(family)
    if not (home / "alone").exists():
        assert main(["train", *trusted(home, "alone", "train.steps=3")]) == 0
    run = "-".join(layout)
    path, *changes = words(home, run, "train.steps=3", *(f"parallel.{part}" for part in layout))
    recipe = check_file(path, changes, "train")
    world = recipe.parallel.tensor * recipe.parallel.pipe
    codes: list[Any] = run_ranks(world, lambda: assemble(recipe).train().exit_code)
    assert set(codes) == {0}
    assert losses(home, run) == pytest.approx(losses(home, "alone"), rel=1e-5)
    ours, alone = open_weights(home / run / "last"), open_weights(home / "alone/last")
    for name in alone:  # AdamW makes steps of one size of gradients that are nearly nothing
        torch.testing.assert_close(ours[name], alone[name], rtol=1e-3, atol=1e-3)


def test_its_settings_and_memory_are_known(home_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    home = home_of("cpm_bee")
    assert main(["check", *trusted(home, "run", "tuning.rslora=true")]) == 2
    assert "tuning.rslora: is a setting of method lora" in capsys.readouterr().err
    assert main(["check", *trusted(home, "run", "tuning.targetz=[key]")]) == 2
    assert "did you mean 'targets'?" in capsys.readouterr().err
    assert main(["plan", *trusted(home, "run", "parallel.tensor=2"), "--per-node", "2", "--json"]) == 0


def test_a_file_that_defines_no_method_is_told(home_of: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    home = home_of("cpm_bee")
    (tmp_path / "empty.py").write_text("")
    assert main(["check", *trusted(home, "run", f"tuning.method={tmp_path / 'empty.py'}")]) == 2
    assert "it must define `method`" in capsys.readouterr().err
