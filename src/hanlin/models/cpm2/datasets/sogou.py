"""Sogou-Log: which of two titles does a query look for?

A record to learn from: {"query": "...", "pos_doc": "...", "neg_doc": "..."}; one to rank:
{"query_id": 3, "query": "...", "doc": [{"sogou_id": "x-17", "title": "..."}, ...]}. There is no answer: the score of a
title is the logit of `SCORED` at the last column.
"""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.processor import SoftPrompts
from hanlin.data.sources.records import LeftOutError

from ..pieces import Item, Mark, Prompts
from .dataset import RawDataset
from .fields import field

SCORED = Mark("相关")
PAIR = ("pos_doc", "neg_doc")
# The original reads the first half of the training file and the first fifth of the dev file.
TRAIN_SHARE, DEV_SHARE = 0.5, 0.2
# Ids of a query with a title; pairs with a longer one are not learned from.
MAX_LENGTH = 150
# What broken encodings leave behind.
_BROKEN = ("锟斤拷", "\ufffd")


def records(record: Any) -> list[Any]:
    """The record alone.

    Raises: LeftOutError for one that the original leaves out: without a difference, or with a broken query.
    """
    if is_ranking(record):
        return [record]
    query, better, worse = (field(record, key, str) for key in ("query", *PAIR))
    if better == worse:
        raise LeftOutError("pos_doc and neg_doc are the same")
    if any(mark in query for mark in _BROKEN):
        raise LeftOutError("its query holds what a broken encoding leaves behind")
    return [record]


def is_ranking(record: Any) -> bool:
    """Whether a record lists titles to rank, rather than a better and a worse one."""
    return isinstance(record, dict) and "doc" in record


def make_pair(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """The better and the worse title.

    Raises: DataError.
    """
    query = field(record, "query", str)
    return [_item(query, field(record, key, str), prompts) for key in PAIR]


def make_candidates(record: Any, prompts: SoftPrompts | None = None) -> list[tuple[int, Item]]:
    """Every title with its number, which stands behind the last dash of its name.

    Raises: DataError.
    """
    query, titles = field(record, "query", str), field(record, "doc", list)
    named = [(field(title, "sogou_id", str), field(title, "title", str)) for title in titles]
    return [(_number(name), _item(query, title, prompts)) for name, title in named]


def _number(name: str) -> int:
    number = name.rpartition("-")[2]
    if not number.isdecimal():
        raise DataError(f"'sogou_id' must end with a dash and a number; found {name!r}")
    return int(number)


def _item(query: str, title: str, prompts: SoftPrompts | None) -> Item:
    query, title = (text.replace("\u3000", " ") for text in (query, title))
    # The original has no template with prompts; here they stand before the query.
    before = [] if prompts is None else [Prompts(0, prompts.length)]
    return Item([*before, "查询：", query, "标题：", title], [], is_closed=False)


DATA_SET = RawDataset(make_pair, answer=None, long_text=None, records=records, max_length=MAX_LENGTH)
