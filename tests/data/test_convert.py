"""Raw CCPM rows and the two file forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.data.convert import ccpm_record, ccpm_text_record, convert_file
from hanlin.data.sources import open_records

RAW = {"target": "1", "input": "[翻译]清晨还是西北风。[0]清晨西北转[1]河岳西来转[2]凌晨从北固[3]西北转银潢[答案]"}
FIELDS = {
    "translation": "清晨还是西北风。",
    "choices": ["清晨西北转", "河岳西来转", "凌晨从北固", "西北转银潢"],
    "answer": 1,
}
LINE = (
    '{"input": "清晨还是西北风。", "options": {"<option_0>": "清晨西北转", "<option_1>": "河岳西来转", '
    '"<option_2>": "凌晨从北固", "<option_3>": "西北转银潢"}, "question": "这段话形容了哪句诗的意境？", '
    '"<ans>": "<option_1>"}\n'
)


@pytest.mark.parametrize("row", [RAW, FIELDS])
def test_both_raw_forms_become_the_tutorials_line(tmp_path: Path, row: dict) -> None:
    source = tmp_path / "raw.jsonl"
    source.write_text(json.dumps(row), "utf-8")
    assert convert_file(source, tmp_path / "out.jsonl", ccpm_record) == 1
    assert (tmp_path / "out.jsonl").read_text("utf-8") == LINE


def test_the_answer_may_be_the_text_of_the_choice() -> None:
    assert ccpm_text_record(RAW) == {**json.loads(LINE), "<ans>": "河岳西来转"}


def test_a_row_without_answer_waits_for_it() -> None:
    row = {key: value for key, value in FIELDS.items() if key != "answer"}
    assert ccpm_record(row) == {**json.loads(LINE), "<ans>": ""}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "expected the keys target and input"),
        ({**RAW, "input": "清晨还是西北风。"}, "must read"),
        ({**RAW, "input": RAW["input"].replace("[2]", "[7]")}, "numbered 0, 1, 2"),
        ({**RAW, "target": "4"}, "the choices 0 to 3"),
        ({**RAW, "target": "A"}, "found 'A'"),
        ({**FIELDS, "choices": "abc"}, "a list of texts"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path: Path, row: dict, reason: str) -> None:
    source = tmp_path / "raw.jsonl"
    source.write_text(f"{json.dumps(RAW)}\n{json.dumps(row)}\n", "utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        convert_file(source, tmp_path / "out.jsonl", ccpm_record)
    assert str(caught.value).startswith(f"{source}:2: ")
    assert not (tmp_path / "out.jsonl").exists()


def test_json_lines_go_to_the_binary_form_and_back(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(LINE * 3, "utf-8")
    assert convert_file(source, tmp_path / "set" / "part") == 3
    assert convert_file(tmp_path / "set", tmp_path / "back.jsonl") == 3
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
    assert open_records(tmp_path / "set" / "meta.bin")[0] == json.loads(LINE)
