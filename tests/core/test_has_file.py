"""What stands where a file is expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hanlin.core.errors import ConfigError
from hanlin.core.files import has_file


def test_a_file_and_nothing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert has_file(tmp_path / "file")
    assert has_file(tmp_path / "link")
    assert not has_file(tmp_path / "nothing")
    assert not has_file(tmp_path / "file" / "below")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to("nowhere")
    for name, said in (
        ("pipe", "is a pipe or a device"),
        ("folder", "is a folder, and a file is expected"),
        ("circle", "a symbolic link to circle, which is not there"),
        ("lost", "a symbolic link to nowhere, which is not there"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}: .*{said}"):
            has_file(tmp_path / name, ConfigError)
