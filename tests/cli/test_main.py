from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.cli import main as cli
from hanlin.core.errors import DataError


def _command(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def run(args: object) -> int:
        raise failure

    monkeypatch.setattr("hanlin.cli.doctor.run", run)


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.command_names())


@pytest.mark.parametrize("name", cli.command_names())
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: hanlin {name}" in capsys.readouterr().out


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["trian"])
    assert ended.value.code == 2
    assert "'train'" in capsys.readouterr().err


def test_a_recipe_alone_is_asked_for_where_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["check"])
    assert "required: recipe\n" in capsys.readouterr().err


def test_a_users_mistake_is_a_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, DataError("train.jsonl:3: not JSON"))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "hanlin: train.jsonl:3: not JSON\n"


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, AssertionError("ours"))
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    "words",
    [
        ["train", "r.yaml", "--nproc", "100000"],
        ["train", "r.yaml", "--nproc", "0"],
        ["train", "r.yaml", "--timeout", "1e20"],
        ["train", "r.yaml", "--timeout", "nan"],
        ["train", "r.yaml", "--max-restarts", "-1"],
        ["prepare", "a", "b", "--to", "indexed", "--workers", "100000"],
        ["prepare", "a", "b", "--to", "indexed", "--shuffle", "-1"],
        ["prepare", "a", "b", "--to", "indexed-spans", "--span-length", "0"],
        ["convert", "a", "b", "--ranks", "1000000000000"],
        ["launch", "--hostfile", "h", "--port", "70000", "train", "r.yaml"],
        ["plan", "r.yaml", "--nodes", "1e9"],
    ],
    ids=" ".join,
)
def test_a_number_that_no_machine_bears_is_told_from_its_option(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "number from" in capsys.readouterr().err


def test_doctor_finds_this_machine_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--report", str(tmp_path / "a new folder/report.json")]) == 0
    assert "cpu product bf16" in capsys.readouterr().out
    report = json.loads((tmp_path / "a new folder/report.json").read_text("utf-8"))
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["cpu product bf16"]["facts"]["same_bits"]
    assert found["cpu attention flash"]["facts"]["fp32"]["bias"] == "works"
    assert found["ring of 2 cpu"]["facts"]["backend"] == "gloo"


@pytest.mark.parametrize("command", ["inspect ", "check ", "convert  out", "evaluate a.yaml --json "])
def test_an_empty_name_is_no_path(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would stand for the folder that one is in."""
    with pytest.raises(SystemExit) as ended:
        cli.main(command.split(" "))
    assert ended.value.code == 2
    assert "an empty name" in capsys.readouterr().err
