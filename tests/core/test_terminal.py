"""Whatever standard output and error are, what a command has computed is not lost, and no traceback is shown."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hanlin.core.logging import start_log
from hanlin.core.terminal import steady_streams

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")

PRINT = "from hanlin.core.terminal import steady_streams\nwith steady_streams():\n    print('\\u5e8a\\u524d\\ud800')"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
        text=True,
        encoding="utf-8",
    )


def unheard(kind: str) -> object:
    """Standard error that cannot be written to."""
    if kind == "closed":
        return None
    if kind == "full":
        return open("/dev/full", "w", encoding="utf-8")
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize("kind", ["closed", "full", "no reader"])
def test_a_log_goes_on_where_nobody_listens(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", unheard(kind))
    with steady_streams():
        console = start_log(tmp_path)
        for number in range(3):
            console.print("a report", "x" * 100)
            logging.getLogger("hanlin.test").info("step=%d", number)
    assert "step=2" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    start_log(tmp_path)
    for number in range(3):
        logging.getLogger("hanlin.test").info("step=%d", number)
    told = capsys.readouterr().err
    assert told.count("log.txt: cannot be written: no space is left") == 1
    assert "Traceback" not in told
    assert "step=2" in told


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=["C", "POSIX", "ascii"],
)
def test_answers_are_written_in_utf_8_whatever_the_locale(environment: dict[str, str]) -> None:
    ran = shell(f'{sys.executable} -c "$PROGRAM"', PROGRAM=PRINT, **environment)
    assert (ran.stdout, ran.stderr) == ("床前\\ud800\n", "")


def test_a_locale_that_cannot_name_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("run: {folder: 训练}\nmodel: {family: cpm1, vocab: v}\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ran = shell(f"{sys.executable} -m hanlin check {tmp_path / 'r.yaml'}", **ascii_only)
    assert "Traceback" not in ran.stderr
    assert "训练" in ran.stderr
    assert ran.returncode == 2


@pytest.mark.parametrize(
    ("to", "code", "says"),
    [
        ("> /dev/full", 2, "hanlin: what is written: no space is left on its disk; make room there"),
        (">&-", 0, ""),
        ("| true", 141, ""),
        ("2> /dev/full > /dev/full", 2, ""),
    ],
)
def test_a_command_ends_in_a_sentence_where_it_cannot_write(tmp_path: Path, to: str, code: int, says: str) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"gradient_clipping": 1.0}), encoding="utf-8")
    command = f"{sys.executable} -m hanlin deepspeed {tmp_path / 'ds.json'}"
    told = tmp_path / "code"
    ran = shell(f"(sleep 0.2; {command}; echo $? > {told}) {to}")
    assert told.read_text().strip() == str(code)
    assert ran.stderr.startswith(says)
    assert ran.stderr.count("\n") <= 1, ran.stderr
