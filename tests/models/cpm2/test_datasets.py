"""Templates of CPM-2's data sets say what is wrong with a record; their ids are compared in tests/golden."""

from __future__ import annotations

from typing import Any

import pytest

from hanlin.core.errors import DataError
from hanlin.data.sources import LeftOutError
from hanlin.models.cpm2.datasets import adgen, c3, ccpm, kdconv, lcqmc, sogou, text_to_text
from hanlin.models.cpm2.pieces import Mark, Prompts, source_of
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer
from hanlin.tuning.prompt import PromptTuning

ADVERT = {"title": "甲", "tags": [], "feature": [], "desc": "乙"}


@pytest.mark.parametrize(
    ("make_items", "record", "message"),
    [
        (
            lcqmc.make_items,
            {"sentence1": "甲", "label": 1},
            "the key 'sentence2' is missing; found 'sentence1', 'label'",
        ),
        (lcqmc.make_items, {"sentence1": "甲", "sentence2": "乙", "label": 2}, "'label' must be from 0 to 1; found 2"),
        (
            lcqmc.make_items,
            {"sentence1": 1, "sentence2": "乙", "label": 1},
            "'sentence1' must be of the type str; found 1",
        ),
        (lcqmc.make_items, "甲", "an object with 'sentence1' is expected; found '甲'"),
        (ccpm.make_items, {"translation": "甲", "choices": ["乙"] * 9, "answer": 1}, "at most 8 options"),
        (
            ccpm.make_items,
            {"translation": "甲", "choices": ["乙"], "answer": 1},
            "'answer' must be from 0 to 0; found 1",
        ),
        (c3.make_items, [["甲"], [{"question": "乙", "choice": ["丙"], "answer": "丁"}], "1"], "'丁' is none of the"),
        (c3.make_items, {"question": "乙"}, "the key 'context' is missing"),
        (text_to_text.make_math_items, {"text": "甲"}, "the key 'equation' is missing"),
        (
            text_to_text.make_math_items,
            {"text": "甲", "equation": "5+3"},
            "must begin with 'x='; found '5\\+3'",
        ),
        (adgen.make_items, {**ADVERT, "feature": ["xy"]}, "pairs of texts, .*; found 'xy' in it"),
        (adgen.make_items, {**ADVERT, "feature": [["x"]]}, "pairs of texts"),
        (adgen.make_items, {**ADVERT, "feature": [["x", 3]]}, "pairs of texts"),
        (adgen.make_items, {**ADVERT, "tags": [5]}, "'tags' must be a list of texts; found 5 in it"),
        (ccpm.make_items, {"translation": "甲", "choices": ["乙", None], "answer": 0}, "found None in it"),
        (c3.make_items, {"context": "甲", "question": "乙", "choice": [1], "answer": 1}, "found 1 in it"),
        (c3.make_items, "甲乙", "a list of texts, questions and an id"),
        (kdconv.make_items, {"kg": 1, "response": "甲"}, "the key 'history' is missing"),
    ],
)
def test_a_wrong_record_is_named(make_items: Any, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_items(record)


def test_prompts_stand_before_a_text_that_has_no_places_for_them() -> None:
    [item] = kdconv.make_items({"history": "甲", "kg": "乙", "response": "丙"}, PromptTuning(length=4))
    assert item.pieces == [Prompts(0, 4), "历史：甲 图谱：乙"]
    assert item.max_length == kdconv.MAX_LENGTH + 4


def test_a_row_of_c3_holds_its_questions() -> None:
    first, second = c3.records([["甲", "乙"], [{"question": "丙"}, {"question": "丁"}], "1"])
    assert (first, second) == ({"question": "丙", "context": "甲"}, {"question": "丁", "context": "甲"})
    assert c3.records(first) == [first]
    assert c3.records([["甲"], [{"question": "丙"}, 5], "1"]) == [
        {"question": "丙", "context": "甲"},
        {"question": 5, "context": "甲"},
    ]
    for wrong in (["甲"], ["甲", [{}], "1"], [[], [{}], "1"]):
        with pytest.raises(DataError, match="a list of texts, questions and an id"):
            c3.records(wrong)


def test_an_advertisement_of_nothing_is_dropped() -> None:
    assert adgen.make_items({"title": "", "feature": [], "desc": "甲"}) == []
    assert adgen.make_items({"title": "", "tags": [], "feature": [], "desc": "甲"}) == []
    [item] = adgen.make_items({"title": "", "tags": ["甲", "乙"], "feature": [], "desc": "丙"})
    assert item.pieces == ["甲", Mark("，"), "乙", Mark("；")]


def test_both_published_forms_of_ccpm_are_read() -> None:
    raw = {"target": "1", "input": "[翻译]灯熄灭了[0]灯明[1]灯灭[答案]"}
    record = {"translation": "灯熄灭了", "choices": ["灯明", "灯灭"], "answer": 1}
    assert ccpm.DATA_SET.records(raw) == ccpm.DATA_SET.records(record) == [record]


def test_a_mark_that_the_vocabulary_lacks_is_named() -> None:
    words = ["<unk>", "<s>", "<pad>", "<eod>", "<s_0>", "<s_1>"]
    [item] = lcqmc.make_items({"sentence1": "甲", "sentence2": "乙", "label": 1})
    with pytest.raises(DataError, match="the vocabulary lacks '“'"):
        source_of(item, Cpm2Tokenizer(words))


def test_pairs_that_teach_nothing_are_left_out() -> None:
    with pytest.raises(LeftOutError, match="are the same"):
        sogou.records({"query": "甲", "pos_doc": "乙", "neg_doc": "乙"})
    with pytest.raises(LeftOutError, match="broken encoding"):
        sogou.records({"query": "锟斤拷", "pos_doc": "乙", "neg_doc": "丙"})
    with pytest.raises(DataError, match="the key 'neg_doc' is missing"):
        sogou.records({"query": "甲", "pos_doc": "乙"})


def test_prompts_stand_before_between_and_after_the_sentences() -> None:
    record = {"sentence1": "甲", "sentence2": "乙", "label": 1}
    [item] = lcqmc.make_items(record, PromptTuning(length=4, ratios=(0.25, 0.5, 0.25)))
    assert item.pieces == [Prompts(0, 1), "甲", Prompts(1, 3), "乙", Prompts(3, 4)]
    [apart] = lcqmc.make_items(record, PromptTuning(length=4, ratios=(0.5, 0.0, 0.5)))
    assert apart.pieces == [Prompts(0, 2), "甲", Mark("；"), Prompts(2, 2), "乙", Prompts(2, 4)]
    assert item.answer == [Mark("相似")]
