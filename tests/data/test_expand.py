"""Rows that hold several records, or none; and the first share of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hanlin.core.errors import DataError
from hanlin.data.expand import open_part, records_in
from hanlin.data.sources import LeftOutError
from hanlin.recipe.settings import DataSettings


class Letters:
    """Processor whose rows hold a record for each letter; digits cannot be read."""

    def records(self, row: Any) -> list[str]:
        if row["text"].isdigit():
            raise DataError("digits")
        return list(row["text"])


def write(folder: Path, *texts: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_records_are_found_in_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "ab", "", "c")
    source = open_part(path, DataSettings(), Letters())
    assert [source[number] for number in range(len(source))] == ["a", "b", "c"]
    assert [source.where(number) for number in range(3)] == [f"{path}:{line}" for line in (1, 1, 3)]


def test_a_row_that_cannot_be_read_fails_when_it_is_asked_for(tmp_path: Path) -> None:
    source = open_part(write(tmp_path, "ab", "12", "c"), DataSettings(), Letters())
    assert len(source) == 4
    with pytest.raises(DataError, match="digits"):
        source[2]
    assert source[3] == "c"


def test_a_share_is_of_rows_and_a_limit_of_records(tmp_path: Path) -> None:
    path = write(tmp_path, "ab", "cd", "e", "f", "g")
    half = open_part(path, DataSettings(), Letters(), share=0.5)
    assert [half[number] for number in range(len(half))] == ["a", "b", "c", "d"]
    three = open_part(path, DataSettings(), Letters(), share=0.5, limit=3)
    assert [three[number] for number in range(len(three))] == ["a", "b", "c"]
    assert three.where(2) == f"{path}:2"
    assert len({half.fingerprint, three.fingerprint, open_part(path, DataSettings(), Letters()).fingerprint}) == 3
    assert len(open_part(path, DataSettings(), object())) == 5


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.3 of its 2 rows are none"):
        open_part(write(tmp_path, "a", "b"), DataSettings(), Letters(), share=0.3)
    with pytest.raises(DataError, match="none of the 2 rows holds a record"):
        open_part(write(tmp_path, "", ""), DataSettings(), Letters())


class Choosy(Letters):
    """The same, but a row that begins with a dash is left out."""

    def records(self, row: Any) -> list[str]:
        if row["text"].startswith("-"):
            raise LeftOutError("begins with a dash")
        return super().records(row)


def test_rows_that_hold_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "ab", "-", "", "12", "c", "-", "d")
    whole = open_part(path, DataSettings(), Choosy())
    assert (len(whole), whole.num_rows, whole.num_in_file) == (5, 7, 7)
    assert whole.left_out == [
        (f"{path}:2", "begins with a dash"), (f"{path}:3", "it holds no record"), (f"{path}:6", "begins with a dash"),
    ]  # fmt: skip
    first = open_part(path, DataSettings(), Choosy(), limit=3)
    assert (len(first), first.num_rows, first.num_in_file) == (3, 4, 7)
    assert first.left_out == whole.left_out[:2]
    assert records_in([{"text": "-"}, {"text": "a"}], Choosy()) == ["a"]
