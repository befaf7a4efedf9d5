"""Folders that one process holds alone, files and folders that appear whole or not at all."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kills import killed_at

from hanlin.core import files, locks
from hanlin.core.errors import CheckpointError, ConfigError, DataError
from hanlin.core.files import published, remove_leftovers, replaced_file, written_alone
from hanlin.core.locks import held

HOLD = """
import sys, time
from pathlib import Path
from hanlin.core.locks import held
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


def test_a_folder_whose_holder_is_just_dying_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_MOMENT_SECONDS", 60.0)  # on a busy machine dying takes long too
    process = hold_elsewhere(tmp_path)
    killer = threading.Timer(0.1, process.kill)
    killer.start()
    with held(tmp_path):
        assert process.wait() == -signal.SIGKILL
    killer.join()


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


def test_a_lock_that_cannot_be_written_is_named_and_not_left_behind(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk: the file is there, its first byte fails
    try:
        with pytest.raises(DataError, match=str(tmp_path)), held(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [replaced_file, held], ids=["file", "lock"])
def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path, write: Any) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"file(/inner)?: cannot be written: .* a folder is expected"):
        write(tmp_path / "file" / "inner").__enter__()


def write_folder(target: Path, content: str) -> None:
    with published(target, "replace") as private:
        private.mkdir()
        (private / "one").write_text(content)
        (private / "two").write_text(content)


def contents(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("one", "two")]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_leaves_the_old_or_the_new_and_its_traces_go(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_LIBC", None)
    target = tmp_path / "best"
    for call in itertools.count(1):
        write_folder(target, "old")
        if not killed_at(call, lambda: write_folder(target, "new"), monkeypatch):
            break
        assert not can_exchange or target.exists()
        remove_leftovers(tmp_path)
        assert contents(target) in (["old"] * 2, ["new"] * 2)
        assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert call > 5


def test_a_killed_file_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(content: bytes) -> None:
        with replaced_file(tmp_path / "file") as stream:
            stream.write(content)

    for call in itertools.count(1):
        write(b"old")
        if not killed_at(call, lambda: write(b"new"), monkeypatch):
            break
        assert (tmp_path / "file").read_bytes() in (b"old", b"new")
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert call > 2


def test_what_a_living_process_writes_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / ".folder.hidden").write_text("not ours")
    with published(tmp_path / "folder") as private:
        private.mkdir()
        with replaced_file(tmp_path / "folder_2") as stream:
            remove_leftovers(tmp_path)
            stream.write(b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".folder.hidden", "folder", "folder_2"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_target_that_came_meanwhile_is_not_replaced_unasked(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_LIBC", None)

    def publish(make: Callable[[Path], Any]) -> None:
        with published(tmp_path / "target") as private:
            private.write_text("ours")
            make(tmp_path / "target")

    for make in (Path.mkdir, Path.touch):
        with pytest.raises(CheckpointError, match="exists already"):
            publish(make)
        shutil.rmtree(tmp_path / "target") if (tmp_path / "target").is_dir() else (tmp_path / "target").unlink()
    assert not list(tmp_path.iterdir())


def test_links_that_a_kill_left_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for name, target in (("a", "kept"), ("b", "nowhere")):
        (tmp_path / f".{name}.0123abcd.tmp").symlink_to(target)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["replaced", ".replaced"])
def test_what_was_half_written_never_gets_its_place_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.0123abcd.tmp" / name).mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_holder_ends_at_that_moment_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed_meanwhile(stream: Any) -> str:
        if "first" not in seen:
            seen.append("first")
            (tmp_path / ".lock").unlink()
        return "ours"

    seen: list[str] = []
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(locks, "try_lock", removed_meanwhile)
    with held(tmp_path):
        assert seen


def test_what_killed_processes_left_of_a_hidden_file_beside_a_target_goes_too(tmp_path: Path) -> None:
    left = tmp_path / "..out.jsonl.unfinished.0123abcd.tmp"
    left.write_text("half")
    other = tmp_path / "..other.0123abcd.tmp"
    other.write_text("of another target")
    with written_alone(tmp_path / "out.jsonl"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


def test_what_cannot_be_written_is_named_as_the_user_named_it() -> None:
    with pytest.raises(DataError, match=r"^/proc/x: "), replaced_file(Path("/proc/x")):
        pass
