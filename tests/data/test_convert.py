"""The two file forms of records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.data.convert import convert_rows, rows_of
from hanlin.data.sources import open_records

LINE = '{"input": "清晨还是西北风。", "question": "这段话形容了哪句诗的意境？", "<ans>": "<option_1>"}\n'


def test_json_lines_go_to_the_binary_form_and_back(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(LINE * 3, "utf-8")
    assert str(convert_rows(rows_of(source), tmp_path / "set" / "train")) == "3 rows"
    assert str(convert_rows(rows_of(tmp_path / "set" / "train"), tmp_path / "back.jsonl")) == "3 rows"
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
    assert open_records(tmp_path / "set" / "train" / "meta.bin")[0] == json.loads(LINE)


def test_a_binary_data_set_is_never_added_to(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(LINE, "utf-8")
    for name in ("train", "eval"):
        convert_rows(rows_of(source), tmp_path / "set" / name)
    assert [len(open_records(tmp_path / "set" / name)) for name in ("train", "eval")] == [1, 1]
    with pytest.raises(DataError, match="is a binary data set already; choose another folder"):
        convert_rows(rows_of(source), tmp_path / "set" / "train")


@pytest.mark.parametrize("target", ["back.jsonl", "set"])
def test_bad_rows_are_listed_all_at_once_or_left_out(tmp_path: Path, target: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(f'{LINE}{{"a": NaN}}\n{LINE}nonsense\n', "utf-8")
    with pytest.raises(DataError) as caught:
        convert_rows(rows_of(source), tmp_path / target)
    head, first, second, advice = str(caught.value).splitlines()
    assert head == "2 of 4 rows cannot be used."
    assert first.strip() == f"{source}:2: not JSON: NaN is no JSON number"
    assert second.strip().startswith(f"{source}:4: not JSON")
    assert advice.endswith("--bad-rows drop")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["in.jsonl", *(["set"] if target == "set" else [])]
    )
    assert str(convert_rows(rows_of(source), tmp_path / target, "drop")).startswith(f"2 rows, 2 left out ({source}:2: ")
    assert len(open_records(tmp_path / target)) == 2


def test_rows_of_ids_become_json_lines(tmp_path: Path) -> None:
    rows = [("here:1", [{"input_ids": [5, 6], "labels": [-100, 6]}])]
    convert_rows(rows, tmp_path / "ids.jsonl")
    assert open_records(tmp_path / "ids.jsonl")[0]["labels"] == [-100, 6]
