"""A JSON file that is one list: its entries, their lines, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.data.sources import open_records


def write(folder: Path, text: str) -> Path:
    path = folder / "rows.json"
    path.write_text(text, "utf-8")
    return path


def test_entries_know_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff\n[{"a": 1},\n  {"b":\n 2}, [3]\n]\n')
    source = open_records(path)
    assert [source[row] for row in range(len(source))] == [{"a": 1}, {"b": 2}, [3]]
    assert [source.where(row) for row in range(3)] == [
        f"{path}:{line} (entry {row})" for row, line in ((1, 2), (2, 3), (3, 4))
    ]
    assert source.fingerprint != open_records(write(tmp_path, "[1]")).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the list is empty"),
        ("[1\n 2]", r"rows.json:2: not a JSON list: a comma or the list's end is expected \(column 2\)"),
        ("[1, 2", "rows.json:1: not a JSON list: a comma"),
        ("[1, ", "rows.json:1: not a JSON list: Expecting value"),
        ("[1]\n{}", "'{}' stands behind the list's end"),
        ("[1,\n{]", "rows.json:2: not a JSON list"),
    ],
)
def test_what_is_no_list_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_records(write(tmp_path, text))
