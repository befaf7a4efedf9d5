"""JSON lines: which rows there are, and what is said about a row that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.data.sources import BadRowError, jsonl, open_records
from hanlin.data.sources.jsonl import write_jsonl

ROWS = [{"text": "一"}, {"text": "二\n三"}, {"text": "🀄 x", "n": {"a": [1, 2.5, None, True]}}]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (b"\n".join(LINES) + b"\n", [1, 2, 3]),
        (b"\n".join(LINES), [1, 2, 3]),
        (b"\xef\xbb\xbf" + b"\r\n".join(LINES) + b"\r\n", [1, 2, 3]),
        (b"\n  \n" + b"\n\t\r\n\n".join(LINES) + b"\n\n", [3, 6, 9]),
        (b"\n".join(b"  " + line for line in LINES), [1, 2, 3]),
        (gzip.compress(b"\n".join(LINES)), [1, 2, 3]),
    ],
    ids=["plain", "no last line end", "mark and CRLF", "blank lines", "indented", "gzip"],
)
@pytest.mark.parametrize("scan_bytes", [jsonl.SCAN_BYTES, 7])
def test_rows_are_found_with_their_line_numbers(
    tmp_path: Path, data: bytes, numbers: list[int], scan_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "SCAN_BYTES", scan_bytes)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    source = open_records(path)
    assert [source[row] for row in range(len(source))] == ROWS
    assert [source.where(row) for row in range(len(source))] == [f"{path}:{number}" for number in numbers]


def test_equal_content_has_an_equal_fingerprint(tmp_path: Path) -> None:
    for name, rows in (("a.jsonl", ROWS), ("b.jsonl", ROWS), ("c.jsonl", ROWS[:2])):
        assert write_jsonl(tmp_path / name, rows) == len(rows)
    a, b, c = (open_records(tmp_path / name).fingerprint for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b != c


BAD_LINES = {
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8: byte 0xff at byte 11"),
    "another encoding": ('{"text": "翰林"}'.encode("gb18030"), "it reads as GB18030"),
    "NUL": (b'{"text": "a\0"}', "NUL byte at column 12"),
    "no JSON": (b"hello", "not JSON: Expecting value at column 1"),
    "missing comma": (b'{"a": "1" "b": "2"}', "not JSON: Expecting ',' delimiter at column 11"),
    "single quotes": (b"{'a': 'b'}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    "text after the object": (b'{"a": "b"} {"c": "d"}', "not JSON: Extra data at column 12"),
    "tab in a string": (b'{"a": "b\tc"}', "not JSON: Invalid control character"),
    "NaN": (b'{"a": NaN}', "NaN is no JSON number"),
    "duplicate key": (b'{"a": "1", "b": "2", "a": "3"}', "duplicate key 'a'"),
    "duplicate key below": (b'{"a": {"b": "1", "b": "2"}}', "duplicate key 'b'"),
    "a list": (b'["a"]', "expected an object {...}, found a list"),
    "a string": (b'"a"', "expected an object {...}, found a string"),
    "null": (b"null", "expected an object {...}, found null"),
    "spread over lines": (b"{", "spread over several lines"),
    "a mark inside": (b'\xef\xbb\xbf{"a": "b"}', "a byte order mark inside the file"),
    "half a character": (b'{"a": "\\ud83d"}', "half a character: \\ud83d"),
    "too deep": (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
    "huge number": (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_row_says_where_and_why(tmp_path: Path, kind: str) -> None:
    line, reason = BAD_LINES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES[0] + b"\n" + line + b"\n" + LINES[1] + b"\n")
    source = open_records(path)
    with pytest.raises(BadRowError) as caught:
        source[1]
    assert caught.value.where == f"{path}:2"
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)
    assert source[2] == ROWS[1]


def test_a_cut_off_last_row_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for cut in range(1, len(LINES[2])):
        path.write_bytes(LINES[0] + b"\n" + LINES[2][:cut])
        with pytest.raises(BadRowError, match="it was cut off") as caught:
            open_records(path)[1]
        assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no rows"),
        (b"\n \r\n", "holds no rows"),
        ("{}".encode("utf-16"), "the file is UTF-16"),
        (gzip.compress(LINES[0])[:-5], "damaged or cut off"),
        (b"\x1f\x8bnonsense", "damaged or cut off"),
    ],
    ids=["empty", "blank", "UTF-16", "cut gzip", "no gzip"],
)
def test_a_useless_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        open_records(path)


def test_a_missing_file_and_a_plain_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        open_records(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="a folder without data files"):
        open_records(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def rows():
        yield {"a": "b"}
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        write_jsonl(tmp_path / "rows.jsonl", rows())
    assert not list(tmp_path.iterdir())
