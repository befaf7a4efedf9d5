"""CSV and TSV: rows and their lines as Python's own reader finds them, encodings, and what is no table."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import random
from pathlib import Path

import pytest
import zstandard

from hanlin.core.errors import DataError
from hanlin.data.sources import BadRowError, delimited, open_records

ROWS = [["一", "a"], ["二,三", 'said "x"'], ["四\n五\r\n六", ""], ["", ""]]


def write(path: Path, rows: list[list[str]], **manner) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, **{"lineterminator": "\n", **manner}).writerows([["标题", "text"], *rows])
    path.write_bytes(text.getvalue().encode())
    return path


def read(path: Path) -> list[list[str]]:
    source = open_records(path)
    rows = [source[row] for row in range(len(source))]
    assert all(list(row) == ["标题", "text"] for row in rows)
    return [list(row.values()) for row in rows]


@pytest.mark.parametrize("form", ["plain", "mark", "gb18030", "gzip", "zstd", "CRLF", "quoted", "no last end", "tsv"])
def test_rows_of_every_form_are_the_same(tmp_path: Path, form: str) -> None:
    name = {"gzip": "a.csv.gz", "zstd": "a.csv.zst", "tsv": "a.tsv"}.get(form, "a.csv")
    manner = {"CRLF": {"lineterminator": "\r\n"}, "quoted": {"quoting": csv.QUOTE_ALL}, "tsv": {"delimiter": "\t"}}
    path = write(tmp_path / name, ROWS, **manner.get(form, {}))
    content = path.read_bytes()
    pack = {
        "mark": lambda data: b"\xef\xbb\xbf" + data,
        "gb18030": lambda data: data.decode().encode("gb18030"),
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "no last end": lambda data: data[:-1],
    }
    path.write_bytes(pack.get(form, bytes)(content))
    assert read(path) == ROWS
    source = open_records(path)
    assert [source.where(row) for row in range(4)] == [f"{path}:{line}" for line in (2, 3, 4, 7)]


@pytest.mark.parametrize("scan_bytes", [delimited.SCAN_BYTES, 5])
def test_rows_are_those_of_pythons_reader(tmp_path: Path, scan_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "SCAN_BYTES", scan_bytes)
    draw = random.Random(0)
    for _ in range(300):
        rows = [
            ["".join(draw.choices('a",\n é字;\t', k=draw.randint(0, 6))) for _ in range(2)]
            for _ in range(draw.randint(1, 5))
        ]
        quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        assert read(write(tmp_path / "a.csv", rows, quoting=quoting)) == rows


def test_a_marks_inside_a_value_is_text_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\n\r\nsize,text\n5" disk,a "b" c\n\n\r\n6,"x"\n', "utf-8")
    source = open_records(path)
    assert [source[row] for row in range(len(source))] == [
        {"size": '5" disk', "text": 'a "b" c'},
        {"size": "6", "text": "x"},
    ]
    assert source.where(1) == f"{path}:7"


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_without_commas_is_divided_by_what_its_header_has(tmp_path: Path, mark: str) -> None:
    assert read(write(tmp_path / "a.csv", ROWS, delimiter=mark)) == ROWS


BAD_ROWS = {
    "too few": (b"x", "1 value, the first line names 2 columns"),
    "too many": (b"x,y,z", "3 values, the first line names 2 columns"),
    "NUL": (b"x,\0", "NUL byte at character 3"),
    "text behind a quotation": (b'"x" and,y', "character 4 stands behind the end of a quoted value"),
    "two lines": (b'"x\ny" z,a', "character 6 stands behind the end of a quoted value"),
    "not UTF-8": ("字".encode() * 9 + b",\xff", "not UTF-8: byte 0xff"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_says_where_and_why(tmp_path: Path, kind: str) -> None:
    line, reason = BAD_ROWS[kind]
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,2\n" + line + b"\n3,4\n")
    source = open_records(path)
    with pytest.raises(BadRowError) as caught:
        source[1]
    assert caught.value.where == f"{path}:3"
    assert reason in caught.value.reason
    assert ("takes the row on to line 4" in caught.value.reason) == (kind == "two lines")
    assert source[2] == {"a": "3", "b": "4"}


USELESS = {
    "empty": (b"", "holds no rows"),
    "blank": (b"\n \r\n", "holds no rows"),
    "a header alone": (b"a,b\n", "no rows behind the names"),
    "JSON lines": (b'{"text": "a"}\n', "a.csv:1: the first line is JSON"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "is UTF-16"),
    "Excel": (b"PK\x03\x04xxxxxx", "a table of Excel; unpack it, or save the table as CSV UTF-8"),
    "no name": (b"a,,c\n1,2,3\n", r"a.csv:1: column 2 of 3 has no name .* to_csv\(..., index=False\)"),
    "a name twice": (b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
    "line ends of old": (b"a,b\r1,2\r3,4", "carriage return alone"),
    "an open quotation": (b'a,b\n1,2\n"3,4\n5,6\n', "a.csv:3: a value begins with a quotation mark .* no other one"),
    "cut gzip": (gzip.compress(b"a,b\n1,2\n" * 99)[:-9], "damaged or cut off"),
}  # fmt: skip


@pytest.mark.parametrize("kind", USELESS)
def test_a_useless_file_is_refused(tmp_path: Path, kind: str) -> None:
    content, reason = USELESS[kind]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_records(tmp_path / "a.csv")


def test_giant_lines_and_values_end_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "x" * 2000 + ",y\n1,2\n", "utf-8")
    source = open_records(path)
    with pytest.raises(BadRowError, match=r"a.csv:2: a row of 2,002 bytes; at most 1,000"):
        source[0]
    assert source[1] == {"a": "1", "b": "2"}
    path.write_text('a,b\n"' + "x\n" * 2000 + '",y\n1,2\n', "utf-8")
    with pytest.raises(DataError, match=r"a.csv:2: a value begins with a quotation mark"):
        open_records(path)
    path.write_text("x" * 5000 + "\n1\n", "utf-8")
    with pytest.raises(DataError, match=r"a.csv:1: the names of the columns cannot be read: a row of 5,000 bytes"):
        open_records(path)


def test_gb18030_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(("编号,正文\n" + "1,abc\n" * 9 + "2,翰林\n").encode("gbk") + b"3,\xff\n")
    with caplog.at_level(logging.WARNING):
        source = open_records(path)
    assert "read as GB18030" in caplog.text
    assert source.kind == "table with commas, GB18030"
    assert source[9] == {"编号": "2", "正文": "翰林"}
    with pytest.raises(BadRowError, match=r"a.csv:12: not GB18030, as the rows before"):
        source[10]


def test_the_delimiter_counts_in_the_fingerprint(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.tsv"):
        (tmp_path / name).write_text("a,b\tc\n1,2\t3\n", "utf-8")
    a, b, c = (open_records(tmp_path / name).fingerprint for name in ("a.csv", "b.csv", "c.tsv"))
    assert a == b != c
