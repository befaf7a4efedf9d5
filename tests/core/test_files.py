"""Folders that one process holds alone, files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hanlin.core.errors import CheckpointError, ConfigError, DataError
from hanlin.core.files import held, published, replaced_file

HOLD = """
import sys, time
from pathlib import Path
from hanlin.core.files import held
with held(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""


def hold_elsewhere(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def test_a_held_folder_says_who_has_it_until_that_one_is_dead(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path / "run")
    try:
        with (
            pytest.raises(ConfigError, match=rf"run: is in use by process {process.pid} on \S+ since 2"),
            held(tmp_path / "run"),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for _ in range(2):  # the lock of the dead is gone, and ours goes at the end
        with held(tmp_path / "run"):
            pass
    assert not list((tmp_path / "run").iterdir())


def test_what_fails_leaves_the_target_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), published(target, "replace") as private:
        private.write_text(str(1 / 0))
    with pytest.raises(RuntimeError), replaced_file(tmp_path / "file"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (target / "old").read_text() == "old"


def test_what_succeeds_replaces_is_refused_or_kept(tmp_path: Path) -> None:
    def publish(content: str, if_exists) -> None:
        with published(tmp_path / "folder", if_exists) as private:
            private.mkdir()
            (private / "file").write_text(content)

    publish("first", "refuse")
    with pytest.raises(CheckpointError, match="exists already"):
        publish("second", "refuse")
    publish("third", "keep")
    assert (tmp_path / "folder" / "file").read_text() == "first"
    publish("fourth", "replace")
    assert (tmp_path / "folder" / "file").read_text() == "fourth"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_permissions_are_those_of_the_process(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replaced_file(tmp_path / "file") as stream:
            stream.write(b"1")
        with published(tmp_path / "folder") as private:
            private.mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written"), replaced_file(tmp_path / "file" / "inner"):
        pass
    with pytest.raises(DataError, match="cannot be written"), held(tmp_path / "file" / "inner"):
        pass
