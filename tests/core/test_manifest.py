"""Folders that list their files by size and sha256, so that a changed one is not taken for what was written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hanlin.core import manifest, remembered
from hanlin.core.errors import CheckpointError
from hanlin.core.manifest import MANIFEST, check_complete, check_manifest, manifest_problems, published_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with published_folder(tmp_path / "base") as beside:
        (beside / "config.json").write_text('{"eps": 1e-5}')
        (beside / "model.bin").write_bytes(bytes(range(200)))
        (beside / "inner").mkdir()
        (beside / "inner" / "part.bin").write_bytes(b"12345")
    return tmp_path / "base"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"flip": (flip, "was changed"), "truncate": (truncate, "bytes instead of"), "delete": (Path.unlink, "missing")}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "model.bin", "inner/part.bin"])
def test_what_was_changed_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    check_manifest(folder)
    assert manifest_problems(folder) == []
    change, words = DAMAGE[damage]
    change(folder / name)
    with pytest.raises(
        CheckpointError, match=rf"base: not as it was written: {name} .*{words}.* remove its {MANIFEST}"
    ):
        check_manifest(folder)
    (folder / MANIFEST).unlink()  # on purpose
    check_manifest(folder)


def test_a_file_of_a_folder_stands_for_all_of_it(folder: Path) -> None:
    flip(folder / "model.bin")
    for inner in ("model.bin", "inner", "inner/part.bin", "config.json"):
        with pytest.raises(CheckpointError, match=r"model\.bin was changed"):
            check_manifest(folder / inner)
    (folder / "mine").mkdir()
    check_manifest(folder / "mine")


@pytest.mark.parametrize("content", ['{"files": ', "\xff"])
def test_a_damaged_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json.*or remove it"):
        check_manifest(folder)
    assert manifest_problems(folder) == [f"{MANIFEST} cannot be read"]


@pytest.mark.parametrize("content", ["{}", '{"files": {}}'])
def test_an_emptied_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: lists no files"):
        check_manifest(folder)


@pytest.mark.parametrize("values", [{"name": "an app"}, {"files": ["a.js"]}, {"files": {"a.js": "sha"}}])
def test_another_programs_manifest_is_not_looked_at(folder: Path, values: dict) -> None:
    (folder / MANIFEST).write_text(json.dumps(values))
    check_manifest(folder)


def test_devices_and_other_folders_are_not_read(folder: Path) -> None:
    listed = {"files": {"/dev/zero": {"size": 0, "sha256": ""}}}
    (folder / MANIFEST).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="/dev/zero is missing"):
        check_manifest(folder)


def test_large_files_are_hashed_once_and_again_when_they_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real: Callable[[Path], str] = remembered.sha256_of
    monkeypatch.setattr(remembered, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(manifest, "MIN_REMEMBERED_BYTES", 1)
    memory = tmp_path / "home" / ".cache" / "hanlin" / "remembered"
    check_manifest(folder)
    assert len(hashed) == 3
    assert not list(memory.glob("*.json"))  # written this very moment: they might change without a new time
    monkeypatch.setattr(time, "time_ns", lambda: (folder / "model.bin").stat().st_ctime_ns + 10**10)
    for _ in range(2):
        check_manifest(folder)
    assert len(hashed) == 6
    before = (folder / "model.bin").stat()
    flip(folder / "model.bin")
    os.utime(folder / "model.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"model\.bin was changed"):
        check_manifest(folder)
    assert hashed[6:] == ["model.bin"]
    for known in memory.glob("*.json"):
        known.write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.bin was changed"):
        check_manifest(folder)


def test_what_is_gone_from_a_folder_is_told_without_reading_the_rest(folder: Path) -> None:
    flip(folder / "config.json")
    check_complete(folder)
    (folder / "inner" / "part.bin").unlink()
    with pytest.raises(CheckpointError, match=r"base: not as it was written: inner/part\.bin is missing"):
        check_complete(folder)
    (folder / MANIFEST).unlink()
    check_complete(folder)
