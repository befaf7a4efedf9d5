"""What the system does not let a command read or write: one sentence that names the file, never a traceback."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_bee import write_base

from hanlin.cli.main import main

RECIPE = """\
model: {family: cpm_bee, base: base}
data: {train: rows.jsonl, eval: rows.jsonl, cache: cache}
train: {steps: 1}
evaluate: {tasks: [loss]}
run: {folder: run, device: cpu, threads: 1}
"""
COMMANDS = {
    "check": ["check", "recipe.yaml"],
    "plan": ["plan", "recipe.yaml"],
    "prepare": ["prepare", "recipe.yaml"],
    "train": ["train", "recipe.yaml"],
    "evaluate": ["evaluate", "recipe.yaml", "--weights", "base", "--json", "out/scores.json"],
    "generate": ["generate", "--base", "base", "--input", "rows.jsonl", "--output", "out/answers.jsonl"],
    "inspect": ["inspect", "base", "rows.jsonl", "base/vocab.txt", "recipe.yaml"],
    "convert": ["convert", "base", "out/original", "--to", "original"],
    "build": ["tokenizer", "build", "rows.jsonl", "--out", "out/vocab.txt"],
    "report": ["report", "seen", "--output", "out/report.html"],
    "deepspeed": ["deepspeed", "ds.json"],
    "launch": ["launch", "--hostfile", "hosts", "train", "recipe.yaml"],
}
READ = {
    "recipe.yaml": ["check", "plan", "prepare", "train", "evaluate", "inspect"],
    "rows.jsonl": ["check", "prepare", "train", "evaluate", "generate", "inspect", "build"],
    "base/config.json": ["check", "train", "evaluate", "generate", "inspect", "convert"],
    "base/model.safetensors": ["train", "evaluate", "generate", "inspect", "convert"],
    "base/vocab.txt": ["check", "train", "prepare", "evaluate", "generate", "inspect"],
    "seen/metrics.jsonl": ["report"],
    "ds.json": ["deepspeed"],
    "hosts": ["launch"],
}
WRITTEN = {
    "out": ["evaluate", "generate", "convert", "build", "report"],
    "run": ["check", "train"],
    "cache": ["check", "train", "prepare"],
}


@pytest.fixture(scope="module", autouse=True)
def _all_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody may read the installed packages: each command has run once before it is tried without power."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("before")
        patch.chdir(folder)
        write_project(folder)
        assert {main(words) for words in COMMANDS.values()} == {0}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    if os.geteuid() == 0:
        # pytest keeps its folders, of which a worker has one more, from everybody else.
        for path in [*(one for one in tmp_path.parents if "pytest-of-" in str(one)), tmp_path]:
            path.chmod(0o755)
        for path in [tmp_path, *tmp_path.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    return tmp_path


def write_project(tmp_path: Path) -> None:
    for folder in ("run", "seen", "out", "cache"):
        (tmp_path / folder).mkdir()
    rows = '{"input": "床前", "<ans>": "明月光"}\n' * 3
    files = {
        "recipe.yaml": RECIPE,
        "rows.jsonl": rows,
        "seen/metrics.jsonl": '{"step": 1, "loss": 2.0}\n',
        "ds.json": "{}",
        "hosts": "a slots=1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    write_base(tmp_path / "base")


NOBODY = 65534


@contextmanager
def without_power() -> Iterator[None]:
    """Root may do everything; as nobody the permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def assert_refused(command: str, told: str, name: str) -> None:
    last = [line for line in told.splitlines() if "no permission" in line]
    assert last, (command, told)
    assert name in last[0], (command, told)
    assert "room" not in last[0]
    assert "Traceback" not in told


@pytest.mark.parametrize("name", READ)
def test_a_file_without_permission_to_read_is_named(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / name).chmod(0)
    for command in READ[name]:
        with without_power():
            assert main(COMMANDS[command]) == 2, command
        assert_refused(command, capsys.readouterr().err, name)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_without_permission_to_write_is_named(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / name).chmod(0o555)
    for command in WRITTEN[name]:
        with without_power():
            assert main(COMMANDS[command]) == 2, command
        assert_refused(command, capsys.readouterr().err, name)


@pytest.mark.parametrize("command", ["prepare", "evaluate", "generate", "convert", "report", "train"])
def test_a_file_that_cannot_grow_is_named(project: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a full disk: a write fails in the middle of the work. Whatever is there afterwards is whole."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    try:
        assert main(COMMANDS[command]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = capsys.readouterr().err
    assert "cannot be written" in told or "is larger than its file system" in told
    assert "Traceback" not in told
    assert not list((project / "out").iterdir())


def test_pickles_that_torch_cannot_write_are_told_with_the_systems_reason(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert main(COMMANDS["convert"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "is larger than its file system, or the limit" in capsys.readouterr().err
    assert not list((project / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("run.folder=" + "长" * 90, "run.folder: a name in a path has at most 255 bytes"),
        ("run.folder=~nobody_of_this_name/run", "run.folder: Could not determine home directory"),
        ('run.folder="a\\0b"', "run.folder: a path without NUL bytes is expected"),
    ],
)
def test_a_path_that_no_system_takes_is_told(change: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "recipe.yaml", change]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run: {folder: x}\nmodel: {family: a\0b}", "recipe.yaml:2: not YAML: a character that no text has (U+0000)"),
        ("run: !!int x", "recipe.yaml:1: not YAML: a value is not what its tag"),
        ("run: !!timestamp x", "recipe.yaml:1: not YAML: a value is not what its tag"),
    ],
)
def test_a_recipe_that_is_no_text_is_told(
    project: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "recipe.yaml").write_text(text, encoding="utf-8")
    assert main(["check", "recipe.yaml"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["recipe.yaml", "rows.jsonl"])
def test_a_link_that_leads_nowhere_is_told(project: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project / name).unlink()
    (project / name).symlink_to("gone")
    assert main(["check", "recipe.yaml"]) == 2
    assert f"{name} (it is a symbolic link to gone, which is not there)" in capsys.readouterr().err.replace(
        "no such recipe (", "recipe.yaml ("
    )
