from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.cli._demo_data import read_number, write_numbers


@pytest.mark.parametrize(
    ("number", "read"),
    [
        (0, "零"),
        (7, "七"),
        (10, "十"),
        (15, "十五"),
        (20, "二十"),
        (105, "一百零五"),
        (110, "一百一十"),
        (1001, "一千零一"),
        (1010, "一千零一十"),
        (10_050, "一万零五十"),
        (105_000, "十万五千"),
        (110_015, "十一万零一十五"),
        (10_000_001, "一千万零一"),
        (12_345_678, "一千二百三十四万五千六百七十八"),
    ],
)
def test_numbers_are_read_as_they_are_spoken(number: int, read: str) -> None:
    assert read_number(number) == read


def test_a_lone_two_is_read_as_it_is_where_things_are_counted(tmp_path: Path) -> None:
    lines = write_numbers(tmp_path, rows=4000, eval_rows=1, seed=1).lines
    assert any("午两点" in line for line in lines)
    assert any(line.startswith("两块") for line in lines)
    assert not [line for line in lines if line.startswith("二块") or "午二点" in line]


def test_lines_of_numbers_are_different_and_those_held_out_are_not_among_them(tmp_path: Path) -> None:
    data = write_numbers(tmp_path, rows=300, eval_rows=40, seed=1)
    rows = [json.loads(line) for line in (tmp_path / "numbers_train.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == data.lines
    assert len(set(data.lines)) == 300
    held_out = [json.loads(line) for line in (tmp_path / "numbers_eval.jsonl").read_text("utf-8").splitlines()]
    assert {row["prompt"]: row["answer"] for row in held_out} == data.held_out
    assert not data.held_out.keys() & {f"{line.split('=')[0]}=" for line in data.lines}
    assert write_numbers(tmp_path / "again", rows=300, eval_rows=40, seed=1) == data
    assert write_numbers(tmp_path / "other", rows=300, eval_rows=40, seed=2) != data
