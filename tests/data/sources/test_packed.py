"""Packed files: told by their first bytes, whole or refused, in memory or in a temporary file."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from pathlib import Path

import pytest
import zstandard

from hanlin.core.errors import DataError
from hanlin.data.file_array import FileBytes
from hanlin.data.sources import open_records, packed
from hanlin.data.sources.packed import read_unpacked

LINES = b"".join(b'{"text": "%d"}\n' % number for number in range(3000))
SKIPPED = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
PACKERS = {
    "gzip": gzip.compress,
    "gzip in parts": lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]),
    "zstd": zstandard.compress,
    "zstd in parts": lambda data: zstandard.compress(data[:99]) + zstandard.compress(data[99:]),
    "zstd of many processes": lambda data: SKIPPED + zstandard.compress(data),
}


@pytest.mark.parametrize("form", PACKERS)
@pytest.mark.parametrize("held_bytes", [packed._HELD_BYTES, 1000])
def test_a_packed_file_is_what_is_in_it(
    tmp_path: Path, form: str, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_HELD_BYTES", held_bytes)
    monkeypatch.setattr(packed, "_PIECE_BYTES", 500)
    path, plain = tmp_path / "rows.jsonl", tmp_path / "plain.jsonl"
    path.write_bytes(PACKERS[form](LINES))
    plain.write_bytes(LINES)
    content = read_unpacked(path)
    assert isinstance(content, FileBytes) == (held_bytes == 1000)
    assert bytes(content) == LINES
    source = open_records(path)
    assert (len(source), source[2999], source.fingerprint) == (3000, {"text": "2999"}, open_records(plain).fingerprint)
    path.write_bytes(b"")  # what was opened does not change
    assert source[2998] == {"text": "2998"}


@pytest.mark.parametrize("form", PACKERS)
def test_a_packed_file_that_is_cut_is_refused(tmp_path: Path, form: str) -> None:
    whole = PACKERS[form](LINES)
    for size in (5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "rows.jsonl.gz").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"rows.jsonl.gz: .*(damaged or cut off|not JSON|NUL)"):
            open_records(tmp_path / "rows.jsonl.gz")[0]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_bomb_is_refused_while_it_is_unpacked(tmp_path: Path, pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_SMALLEST_LIMIT", 1 << 20)
    (tmp_path / "rows.jsonl").write_bytes(pack(b'{"text": "' + b"a" * (1 << 24) + b'"}\n'))
    with pytest.raises(DataError, match="unpacks to more than 50 times its size"):
        open_records(tmp_path / "rows.jsonl")


def test_a_full_disk_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_HELD_BYTES", 1000)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"rows.jsonl.gz: .*none\), which fails: .*set TMPDIR"):
        open_records(tmp_path / "rows.jsonl.gz")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"BZh91AY", "is packed by bzip2"),
        (b"\xfd7zXZ\0\0", "is packed by xz"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\xd0\xcf\x11\xe0", "old Office"),
        (b"\x89PNG\r\n\x1a\n", "is a picture"),
        (b"%PDF-1.7", "take the text out of it"),
        (b"\n\x0e\n\x05<unk" + bytes(range(32)) * 4, "is no text, and nothing else with rows: it begins with"),
    ],
)
def test_other_packings_are_named(tmp_path: Path, head: bytes, reason: str) -> None:
    for name, content in (("rows.jsonl", head), ("rows.jsonl.gz", gzip.compress(head + os.urandom(99)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=reason):
            open_records(tmp_path / name)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="zstd is in the standard library from Python 3.14 on")
def test_without_zstandard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(LINES))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"rows.jsonl.zst: is packed by zstd; pip install 'hanlin\[zstd\]'"):
        open_records(tmp_path / "rows.jsonl.zst")


def test_parquet_inside_a_packed_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(b"PAR1" + bytes(50)))
    with pytest.raises(DataError, match="Parquet or Arrow inside a packed file"):
        open_records(tmp_path / "rows.parquet.gz")
