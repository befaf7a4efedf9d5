"""Raw CCPM rows as CPM-Bee's records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.models.cpm_bee.ccpm import ccpm_record, read_ccpm
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.models.cpm_bee.tokenizer import REQUIRED, CpmBeeTokenizer, unescape

RAW = {"target": "1", "input": "[翻译]清晨还是西北风。[0]清晨西北转[1]河岳西来转[2]凌晨从北固[3]西北转银潢[答案]"}
FIELDS = {
    "translation": "清晨还是西北风。",
    "choices": ["清晨西北转", "河岳西来转", "凌晨从北固", "西北转银潢"],
    "answer": 1,
}
LINE = (
    '{"input": "清晨还是西北风。", "options": {"<option_0>": "清晨西北转", "<option_1>": "河岳西来转", '
    '"<option_2>": "凌晨从北固", "<option_3>": "西北转银潢"}, "question": "这段话形容了哪句诗的意境？", '
    '"<ans>": "<option_1>"}'
)


@pytest.mark.parametrize("row", [RAW, FIELDS])
def test_both_raw_forms_become_the_tutorials_line(tmp_path: Path, row: dict) -> None:
    source = tmp_path / "raw.jsonl"
    source.write_text(json.dumps(row), "utf-8")
    [(where, [record])] = [(where, list(made)) for where, made in read_ccpm(source) if not isinstance(made, DataError)]
    assert (where, json.dumps(record, ensure_ascii=False)) == (f"{source}:1", LINE)


def test_the_answer_may_be_the_text_of_the_choice() -> None:
    assert ccpm_record(RAW, answer_is_text=True) == {**json.loads(LINE), "<ans>": "河岳西来转"}


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
    [_, (where, error)] = read_ccpm(source)
    assert where == f"{source}:2"
    assert isinstance(error, DataError)
    assert reason in str(error)


def test_what_is_written_can_be_trained_on() -> None:
    row = {"translation": "a<b</s>", "choices": ["<option_1>", "<", "丙", "<mask>"], "answer": 1}
    tokenizer = CpmBeeTokenizer([*REQUIRED, "<option>", "<", *"abcs/>_丙", *map(str, range(10))])
    processor = CpmBeeProcessor(tokenizer, CpmBeeConfig(vocab_size=tokenizer.vocab_size))
    for is_text in (False, True):
        record = ccpm_record(row, answer_is_text=is_text)
        processor.check(record)
        assert [unescape(text) for text in record["options"].values()] == row["choices"]
        assert tokenizer.marks_in(record["input"]) == []
