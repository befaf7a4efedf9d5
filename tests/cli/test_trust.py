"""Looking at files runs none of the code that they name; the command line decides what is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_bee import write_vocab

from hanlin.cli.main import main

RECIPE = """\
model: {family: cpm_bee, size: tiny, vocab: vocab.txt}
data: {train: train.jsonl, eval: train.jsonl}
train: {steps: 1}
run: {folder: run}
"""
PLACES = ["model.family", "tuning.method", "train.optimizer.name", "generate.method", "data.transform"]
COMMANDS = ["check", "plan", "prepare", "train", "evaluate", "generate", "chat", "inspect"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_vocab(tmp_path / "vocab.txt")
    (tmp_path / "train.jsonl").write_text('{"input": "床前", "<ans>": "明月光"}\n', encoding="utf-8")
    (tmp_path / "own code.py").write_text("import pathlib\npathlib.Path('it_ran').touch()\n", encoding="utf-8")
    return tmp_path


def write_run(folder: Path, place: str) -> Path:
    """A run folder from elsewhere whose recipe names the code in one place."""
    from hanlin.recipe.yaml12 import parse_yaml

    values = parse_yaml(RECIPE)[0]
    *sections, name = place.split(".")
    inside = values
    for section in sections:
        inside = inside.setdefault(section, {})
    inside[name] = "own code.py"
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(json.dumps(values), encoding="utf-8")
    return folder / "run"


@pytest.mark.parametrize("place", PLACES)
def test_no_command_runs_what_a_file_names(project: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(project, place)
    for command in COMMANDS:
        start = ["--weights", "base"] if command in ("evaluate", "generate", "chat") else []
        code = main([command, str(run / "config.yaml" if command == "inspect" else run), *start])
        told = capsys.readouterr().err
        assert not (project / "it_ran").exists(), command
        reads = {"data.transform": ("check", "prepare", "train", "evaluate")}
        if command in reads.get(place, COMMANDS) and (place, command) != ("model.family", "inspect"):
            assert code == 2, command
            assert f"{place}: " in told, command
            assert "own code.py is Python code" in told, command
            assert "--trust-code" in told, command


def test_nor_what_a_list_of_data_sets_names(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"task_name": "a", "dataset_name": "b", "path": "train.jsonl", "transforms": "own code.py"}
    (project / "list.json").write_text(json.dumps([entry]), encoding="utf-8")
    (project / "recipe.yaml").write_text(RECIPE.replace("train: train.jsonl", "mixture: list.json"), encoding="utf-8")
    for command in ("check", "prepare", "train"):
        assert main([command, "recipe.yaml"]) == 2
        assert "transforms: own code.py is Python code" in capsys.readouterr().err
        assert not (project / "it_ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--trust-code"],
        ["run", "model.family=own code.py"],
        ["run", "model={family: own code.py}"],
    ],
    ids=" ".join,
)
def test_the_command_line_runs_it(project: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_run(project, "model.family")
    assert main(["check", *words]) == 2  # it defines no family
    assert "must define `family" in capsys.readouterr().err
    assert (project / "it_ran").exists()
    del sys.modules[str(project / "own code.py")]


def test_naming_one_file_trusts_no_other(project: Path) -> None:
    write_run(project, "model.family")
    (project / "other.py").write_text("", encoding="utf-8")
    assert main(["check", "run", "generate.method=other.py"]) == 2
    assert not (project / "it_ran").exists()


def test_a_record_is_no_place_to_name_code(project: Path) -> None:
    write_run(project, "generate.method")
    assert main(["generate", "run", "--record", '{"a": "own code.py"}', "--weights", "base"]) == 2
    assert not (project / "it_ran").exists()
