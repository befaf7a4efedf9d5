"""What the system refuses, in one sentence that names the file and gives the right advice."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.core.files import check_target, published, replaced_file
from hanlin.core.os_errors import explain, naming


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR])
def test_room_does_not_help_where_a_permission_is_missing(number: int) -> None:
    told = explain(OSError(number, os.strerror(number), "a/file"))
    assert told.startswith("a/file: ")
    assert "room" not in told
    assert ";" in told, "it says what to do"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_file_that_was_written(number: int) -> None:
    with pytest.raises(OSError) as caught, naming(Path("run/model.bin")):  # noqa: PT011  # its text is what is asked
        raise OSError(number, os.strerror(number))
    told = explain(caught.value, doing="write")
    assert told.startswith("run/model.bin: cannot be written: ")
    assert "permission" not in told


def test_a_giant_name_is_shown_in_short() -> None:
    assert len(explain(OSError(errno.ENAMETOOLONG, "", "a" * 5000))) < 400


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/file")
    for content in (b"new", b"again"):
        with replaced_file(tmp_path / "link") as stream:
            stream.write(content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "file").read_bytes() == content
    (tmp_path / "folder").symlink_to("far")
    with published(tmp_path / "folder", "replace") as beside:
        beside.mkdir()
        (beside / "new").touch()
    assert (tmp_path / "folder").is_symlink()
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["new"]


def test_a_device_is_written_to_and_not_replaced() -> None:
    before = os.stat("/dev/null")
    with replaced_file(Path("/dev/null")) as stream:
        stream.write(b"x")
    assert os.path.samestat(os.stat("/dev/null"), before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as caught, replaced_file(Path("/dev/full")) as stream:
        stream.write(b"x" * 100_000)
    assert caught.value.filename == "/dev/full"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder", "is a folder, and a file is expected"),
        ("file/inner", "a file stands where a folder is expected"),
        ("loop/inner", "a file stands where a folder is expected"),
        ("a" * 300, "the name is too long"),
    ],
)
def test_a_target_that_cannot_be_is_told_before_the_work(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=says):
        check_target(tmp_path / name)
    assert check_target(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert not (tmp_path / "new").exists()
