"""Rows with values of the wrong kind, in every family: a `DataError` and nothing else, one by one and in groups."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from chatglm2_pieces import small_pieces
from cpm2_tiny import RANKING, ROWS, make_tokenizer

from hanlin.core.errors import DataError
from hanlin.data.expand import records_in
from hanlin.data.processor import NotesRecords
from hanlin.evaluation.scorable import choices
from hanlin.generate.prompts import make_prompt
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.labels import label_processor
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.common.text_processor import TextProcessor
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.processor import Cpm1T5Processor
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.processor import Cpm2Processor
from hanlin.models.cpm2.record import Cpm2Options
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer
from hanlin.models.family import RanksCandidates
from hanlin.recipe.settings import GENERATE_METHODS
from hanlin.tokens.wordpiece import WordPiece

TRIES = 150
MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
ODD: list[Any] = [
    None, True, 0, -1, 10**39, 1.5, "", " ", "\n", "<", "甲", "<s>", "😀", [], {}, [None], ["甲"], [["甲"]], [5],
    {"甲": "乙"}, {"甲": None}, {"token": "甲"}, {"token": 5}, ["甲", "乙", "丙"], {"role": ["user"], "content": "甲"},
    "<option_9>",
]  # fmt: skip
TEXTS = [
    {"text": "床前明月光"},
    {"prompt": ["床", {"token": "<mask>"}, 7], "answer": "明月", "ends": False},
    {"prompt": "床", "answer": ["明"], "options": ["明", ["月"], "光"]},
    {"options": {"a": {"prompt": "床", "answer": "月"}, "b": {"text": "明月"}}, "label": "a"},
]
T5 = [
    {"text": "床前明月光疑是地上霜"},
    {"source": ["床", {"token": "<s_0>"}, 7], "target": "明月", "ends": False},
    {"source": "床", "target": "月", "options": ["明", ["月"], "光"]},
]
DIALOGUES = [
    {"prompt": "你好", "response": "你好，世界！"},
    {"prompt": "黑色", "response": "黑色九分裤", "history": [["你好", "世界"], ["问", "答"]]},
    {
        "prompt": "颜色",
        "response": "黑色",
        "history": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}],
    },
    {"input_ids": [64790, 64792, 5, 6, 2], "labels": [-100, -100, -100, 6, 2]},
]
BEE = [
    {"input": "甲", "options": {"<option_0>": "乙", "<option_1>": "丙"}, "question": "丁", "<ans>": "<option_1>"},
    {"input": "甲<mask_0>丙<mask_1>", "<ans>": {"<mask_0>": "乙", "<mask_1>": "丁"}},
    {"input": {"题": "甲<<", "文": "乙"}, "<ans>": {"人名": "丙", "地名": {"一": "丁", "二": ""}}},
]


def _cpm2(name: str) -> Any:
    tokenizer = make_tokenizer()
    config = Cpm2Config(vocab_size=tokenizer.vocab_size)
    dataset: Any = name if name != "ranking" else "sogou-log"
    return Cpm2Processor(tokenizer, config, Cpm2Options(dataset=dataset))


def _texts() -> Any:
    words = ["<unk>", "<pad>", "<eod>", "<mask>", "<sep>", *"床前明月光疑是地上霜，。"]
    return TextProcessor(WordPiece(words), shape(8, 1, 2, vocab_size=20, max_length=64))


def _t5() -> Any:
    words = [
        "<unk>",
        "<pad>",
        "<eod>",
        "<mask>",
        *"床前明月光疑是地上霜，。",
        *(f"<s_{number}>" for number in range(8)),
    ]
    return Cpm1T5Processor(WordPiece(words), Cpm1T5Config(vocab_size=len(words), max_length=64))


def _dialogues(template: str) -> Any:
    return ChatGlm2Processor(ChatGlm2Tokenizer(small_pieces()), ChatGlm2Config(), ChatGlm2Options(template=template))


def _labels(kind: Any) -> Any:
    config = ChatGlm2Config(labels=("好", "坏"), label_kind=kind)
    return label_processor(
        ChatGlm2Processor(ChatGlm2Tokenizer(small_pieces()), config, ChatGlm2Options(prompt_length=32))
    )


def _bee() -> Any:
    tokenizer = CpmBeeTokenizer([*MARKS, *"甲乙丙丁题文", "<", *map(chr, range(65, 91))])
    return CpmBeeProcessor(tokenizer, CpmBeeConfig(vocab_size=tokenizer.vocab_size))


KINDS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    **{f"cpm2 {name}": (lambda name=name: _cpm2(name), rows) for name, rows in {**ROWS, "ranking": RANKING}.items()},
    "cpm2 text": (lambda: _cpm2("text"), [{"source": "天气", "target": "好", "options": ["好", "坏"]}]),
    "cpm1": (_texts, TEXTS),
    "cpm1_t5": (_t5, T5),
    "chatglm2 rounds": (lambda: _dialogues("rounds"), DIALOGUES),
    "chatglm2 roles": (lambda: _dialogues("roles"), DIALOGUES),
    "labels one": (lambda: _labels("one"), [{"prompt": "你好", "response": "好", "history": [["问", "答"]]}]),
    "labels several": (lambda: _labels("several"), [{"prompt": "你好", "response": ["好"]}]),
    "labels number": (lambda: _labels("number"), [{"prompt": "你好", "response": [0.5, 1]}]),
    "cpm_bee": (_bee, BEE),
}


@cache
def processor_of(kind: str) -> Any:
    return KINDS[kind][0]()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


def changed(row: Any, draw: random.Random) -> Any:
    """A copy of a row in which something was replaced, taken away or added."""
    path = draw.choice(list(places(row)))
    if not path:
        return draw.choice([*ODD, [row], {"甲": row}])
    row = copy.deepcopy(row)
    holder = row
    for key in path[:-1]:
        holder = holder[key]
    if draw.random() < 0.2:
        del holder[path[-1]]
    elif draw.random() < 0.1 and isinstance(holder, list):
        holder.append(copy.deepcopy(draw.choice(ODD)))
    else:
        holder[path[-1]] = copy.deepcopy(draw.choice(ODD))
    return row


def outcome(make: Callable[..., Any], *given: Any) -> Any:
    """What is made, or the text of the DataError; anything else that is raised fails the test."""
    try:
        return make(*given)
    except DataError as error:
        return f"DataError: {error}"


def is_error(found: Any) -> bool:
    return isinstance(found, str) and found.startswith("DataError")


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_row_is_a_bad_row_and_no_traceback(kind: str) -> None:
    processor, draw, num_bad = processor_of(kind), random.Random(kind), 0
    for _ in range(TRIES):
        row = draw.choice(KINDS[kind][1])
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            row = changed(row, draw)
        found = outcome(records_in, [row], processor)
        num_bad += is_error(found)
        for record in [] if is_error(found) else found:
            num_bad += try_all(processor, record)
    assert num_bad > TRIES / 10, "the changes do not hurt"


def try_all(processor: Any, record: Any) -> bool:
    before = copy.deepcopy(record)
    checked = outcome(processor.check, record)
    options = GENERATE_METHODS.make({"method": "greedy", "max_new_tokens": 4})
    outcome(make_prompt, processor, record, options, 512)
    if isinstance(processor, RanksCandidates):
        outcome(processor.ranked_example, record)
    if hasattr(processor, "process_many"):
        [made] = processor.process_many([record])
        assert isinstance(made, DataError) == is_error(outcome(processor.sample, record)) or is_error(checked), record
    if not is_error(checked):
        if isinstance(processor, NotesRecords):
            outcome(processor.notes, record)
        outcome(processor.varies, record)
        outcome(processor.gold, record)
        outcome(choices, processor, record, 512)
        for policy in ("truncate", "split"):
            outcome(processor.fit, record, 6, policy)
    assert repr(record) == repr(before), "a record is never changed"
    return is_error(checked)


@pytest.mark.parametrize("kind", KINDS)
def test_good_rows_stay_good(kind: str) -> None:
    processor = processor_of(kind)
    records = records_in(KINDS[kind][1], processor)
    assert records
    for record in records:
        if "input_ids" not in record:
            processor.check(record)
