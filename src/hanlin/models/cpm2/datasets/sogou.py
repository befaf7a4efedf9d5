"""Sogou-Log: which of two titles does a query look for?

A record to learn from: {"query": "...", "pos_doc": "...", "neg_doc": "..."}; one to rank:
{"query_id": 3, "query": "...", "doc": [{"sogou_id": "x-17", "title": "..."}, ...]}. There is no answer: the score of a
title is the logit of `SCORED` at the last column.
"""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import DataError

from ..pieces import Item, Mark
from .fields import field

SCORED = Mark("相关")
# The original reads the first half of the training file and the first fifth of the dev file.
TRAIN_SHARE, DEV_SHARE = 0.5, 0.2
# Ids of a query with a title; pairs with a longer one are not learned from.
MAX_LENGTH = 150
# What broken encodings leave behind.
_BROKEN = ("锟斤拷", "\ufffd")


def make_pair(record: Any) -> tuple[Item, Item] | None:
    """The better and the worse title; None for a record without a difference or with a broken query."""
    query, better, worse = (field(record, key, str) for key in ("query", "pos_doc", "neg_doc"))
    if better == worse or any(mark in query for mark in _BROKEN):
        return None
    return _item(query, better), _item(query, worse)


def make_candidates(record: Any) -> list[tuple[int, Item]]:
    """Every title with its number, which stands behind the last dash of its name.

    Raises: DataError.
    """
    query, titles = field(record, "query", str), field(record, "doc", list)
    named = [(field(title, "sogou_id", str), field(title, "title", str)) for title in titles]
    return [(_number(name), _item(query, title)) for name, title in named]


def _number(name: str) -> int:
    number = name.rpartition("-")[2]
    if not number.isdecimal():
        raise DataError(f"'sogou_id' must end with a dash and a number; found {name!r}")
    return int(number)


def _item(query: str, title: str) -> Item:
    query, title = (text.replace("\u3000", " ") for text in (query, title))
    return Item(["查询：", query, "标题：", title], [], is_closed=False)
