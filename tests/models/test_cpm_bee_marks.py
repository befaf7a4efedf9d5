"""Marks in CPM-Bee's texts: control marks refused, misspelt ones named, answers held to options and blanks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hanlin.core.errors import DataError
from hanlin.data.prepare import prepare
from hanlin.data.sources.jsonl import write_jsonl
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.marks import CONTROL
from hanlin.models.cpm_bee.processor import CpmBeeOptions, CpmBeeProcessor
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer
from hanlin.recipe.settings import DataSettings

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>", "<eod>"]
TOKENIZER = CpmBeeTokenizer([*MARKS, *"甲乙丙丁好坏", "<", *map(chr, range(33, 60)), *map(chr, range(61, 127))])
OPTIONS = {"<option_0>": "好", "<option_1>": "坏"}


def make(**options: Any) -> CpmBeeProcessor:
    return CpmBeeProcessor(TOKENIZER, CpmBeeConfig(vocab_size=TOKENIZER.vocab_size), CpmBeeOptions(**options))


@pytest.mark.parametrize("mark", [*CONTROL, "<ans_1>", "<s_0>", "</s_2>"])
@pytest.mark.parametrize("place", ["text", "key", "below", "answer"])
def test_a_control_mark_is_no_text(mark: str, place: str) -> None:
    text = f"好{mark}坏"
    record: dict[str, Any] = {
        "text": {"input": text, "<ans>": "甲"},
        "key": {text: "甲", "<ans>": "甲"},
        "below": {"input": {"题": {"文": text}}, "<ans>": {"甲": "乙"}},
        "answer": {"input": "甲", "<ans>": text},
    }[place]
    with pytest.raises(DataError, match=f"holds the control mark {mark}; write it as text"):
        make().check(record)
    if place == "answer":
        assert make().prompt(record)  # what stands under "<ans>" is not looked at
    else:
        with pytest.raises(DataError, match="holds the control mark"):
            make().prompt(record)
    make(control_marks=True, free_answers=True).check(record)


def test_an_escaped_control_mark_is_text() -> None:
    processor, plain = make(), {"input": "甲", "<ans>": "甲"}
    record = {**plain, "input": "甲<</s>乙"}
    processor.check(record)
    tokens = [processor.encode(one).tokens.tolist().count(TOKENIZER.marks["</s>"]) for one in (record, plain)]
    assert tokens[0] == tokens[1]
    assert "甲<</s>乙" in TOKENIZER.decode(processor.encode(record).tokens.tolist())


def test_what_is_allowed_is_encoded_as_before() -> None:
    record = {"input": "甲<mask_0>乙<sep>丙<问题>", "options": OPTIONS, "<ans>": "<option_1>"}
    strict, free = make().sample(record), make(control_marks=True, free_answers=True).sample(record)
    for name, values in free.inputs.items():
        np.testing.assert_array_equal(strict.inputs[name], values)
    make().check(record)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("甲<Mask_0>", "<Mask_0> is not read as the mark <mask_0>"),
        ("甲<opton_1>", "<opton_1> is not read as the mark <option_1>"),
        ("甲<options_12>", "the mark <option_12>"),
        ("甲<mask0>", "the mark <mask_0>"),
        ("甲<mask-3>", "the mark <mask_3>"),
        ("甲<mask_0 >", "the mark <mask_0>"),
        ("甲＜mask_0＞", "＜mask_0＞ is not read as the mark <mask_0>"),
        ("甲<SEP>", "the mark <sep>"),
        ("甲<mask_0>乙<sep><option>", None),
        ("甲<<Mask_0>", None),
        ("<问题>甲<b>乙</b><br>", None),
        ("a < b", None),
    ],
)
def test_a_misspelt_mark_is_named(text: str, note: str | None) -> None:
    record = {"input": text.replace(" < ", " << "), "<ans>": "甲"}
    found = make().notes(record)
    assert [note in one and "did you mean" in one for one in found] == ([] if note is None else [True]), found


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"options": OPTIONS, "<ans>": "<option_2>"}, "names <option_2>, which stands nowhere else"),
        ({"options": OPTIONS, "<ans>": "很好"}, "'很好' is none of the options <option_0>, <option_1>"),
        ({"选项": {"A": "好", "B": "坏"}, "<ans>": "C"}, "'C' is none of the options A, B"),
        ({"input": "甲<option_0>乙", "<ans>": "<option_1>"}, "names <option_1>"),
        ({"input": "甲", "<ans>": {"题": "<mask_0>"}}, "<ans>.题: the answer names <mask_0>"),
        ({"input": "甲<mask_0>", "<ans>": {"<mask_1>": "乙"}}, "no such blank; the texts have <mask_0>"),
        ({"input": "甲<mask_0>丙<mask_1>", "<ans>": {"<mask_1>": "乙"}}, "<mask_0> has no answer"),
    ],
)
def test_an_answer_fits_options_and_blanks(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason.replace("(", r"\(")):
        make().check(record)
    make(free_answers=True).check(record)


@pytest.mark.parametrize(
    "record",
    [
        {"options": OPTIONS, "<ans>": "<option_1>"},
        {"options": OPTIONS, "<ans>": "坏"},
        {"options": OPTIONS, "<ans>": "<option_0><option_1>"},
        {"选项": {"A": "好", "B": "坏"}, "<ans>": "B"},
        {"input": "甲<mask_0>丙<mask_1>", "<ans>": {"<mask_1>": "乙", "<mask_0>": "丁"}},
        {"input": "甲<mask_0>丙", "<ans>": "乙"},
        {"input": "甲<option_0>好<option_1>坏", "<ans>": "<option_1>"},
        {"options": OPTIONS, "<ans>": {"第一题": "<option_0>", "第二题": "好"}},
    ],
)
def test_good_answers_pass(record: dict[str, Any]) -> None:
    make().check(record)


def test_misspelt_marks_are_counted_in_the_report(tmp_path: Path) -> None:
    rows = [{"input": f"甲<Mask_0>{text}", "<ans>": "甲"} for text in "乙丙"] + [{"input": "甲", "<ans>": "乙"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = DataSettings(max_length=64, cache=tmp_path / "cache")
    made = prepare([tmp_path / "rows.jsonl"], make(), settings, tokenizer=TOKENIZER, progress=False)
    assert made.report.counts.notes == {"<Mask_0> is not read as the mark <mask_0>; did you mean that?": 2}
