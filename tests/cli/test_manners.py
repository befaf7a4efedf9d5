"""How every command explains itself, and what it answers to words that are not quite right."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hanlin
from hanlin.cli._completing import complete_settings
from hanlin.cli._parser import example_lines
from hanlin.cli.main import _parser, command_help, command_names, main

OVERVIEW = [line.strip() for line in command_help(None).splitlines() if line.startswith("  hanlin ")]
EXAMPLES = [
    (name, line) for name in command_names() for line in example_lines(importlib.import_module(f"hanlin.cli.{name}"))
]


def _words(line: str) -> list[str]:
    """The command of a line of examples: without what it says beside, pipes and redirections."""
    command = re.split(r"\s{2,}|\s>", line)[0]
    return shlex.split(next(part for part in command.split(" | ") if part.startswith("hanlin ")))[1:]


def test_every_command_has_examples() -> None:
    assert {name for name, _ in EXAMPLES} == set(command_names())
    assert len(OVERVIEW) == 3


@pytest.mark.parametrize("line", [*(line for _, line in EXAMPLES), *OVERVIEW])
def test_examples_are_commands(line: str) -> None:
    words = _words(line)
    args, rest = _parser(words).parse_known_args(words)
    assert args.run
    assert all("=" in word and not word.startswith("-") for word in rest)


@pytest.mark.parametrize("name", command_names())
def test_help_is_a_sentence_then_words_then_examples(name: str) -> None:
    shown = command_help(name)
    about = re.search(r"\n\n(\S.*)\n", shown)
    assert about is not None
    assert re.match(r"[A-Z].*[.;:,\w]$", about[1])
    assert about.start() < shown.index("\noptions:") < shown.index("\nexamples:")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian r.yaml", "there is no command 'trian'; did you mean 'train'?"),
        ("zzz", "there is no command 'zzz'; `hanlin --help` lists them"),
        ("--verison", "did you mean '--version'?"),
        ("train r.yaml --restrat", "unrecognized arguments: --restrat; did you mean '--restart'?"),
        ("convert a b --ovrwrite=1", "did you mean '--overwrite'?"),
        ("prepare --to idexed a b", "did you mean 'indexed'?"),
        ("recipes shwo", "did you mean 'show'?"),
        ("", "\n  hanlin demo"),
    ],
)
def test_a_wrong_word_is_answered_by_the_nearest(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_train_alone_says_the_usual_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  hanlin train ")]
    assert [_words(line.strip())[1] for line in lines] == ["recipe.yaml", "recipe.yaml", "runs/mine"]


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_is_said(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option])
    assert capsys.readouterr().out == f"hanlin {hanlin.__version__}\n"


ASK = """\
source <(hanlin completion bash)
for line in "$@"; do
  COMP_LINE="$line" COMP_POINT=${#line} COMP_TYPE=9; read -ra COMP_WORDS <<<"$line"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _python_argcomplete hanlin "${COMP_WORDS[-1]}" hanlin; echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="needs the package argcomplete (hanlin[completion])")
    asked = ["hanlin inspe", "hanlin train m.yaml train.schedule=co"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", ASK, "bash", *asked],
        env={**os.environ, "PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [set(line.split()) for line in ran.stdout.splitlines()]
    assert answers == [{"inspect"}, {"cosine", "constant"}]


def test_keys_values_and_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("argcomplete", reason="needs the package argcomplete (hanlin[completion])")
    (tmp_path / "train_mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_ARGCOMPLETE_SHELL", "bash")
    assert set(complete_settings("train.sch")) == {"train.schedule=", "train.schedule_form="}
    assert "tuning.method=lora" in complete_settings("tuning.method=")
    assert complete_settings("data.shuffle=") == ["data.shuffle=true", "data.shuffle=false", "data.shuffle=once"]
    assert complete_settings("model.quantise=") == [f"model.quantise={value}" for value in ("nf4", "int8", "null")]
    assert "train_mine.yaml" in complete_settings("train_")


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "compdef"), ("fish", "complete --command hanlin")])
def test_other_shells_get_their_script(shell: str, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("argcomplete", reason="needs the package argcomplete (hanlin[completion])")
    assert main(["completion", shell]) == 0
    assert mark in capsys.readouterr().out
