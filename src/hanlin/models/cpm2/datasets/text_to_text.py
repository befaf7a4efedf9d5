"""A text and the text that it becomes: Math23K, LCSTS and WMT, and a user's own columns."""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.processor import SoftPrompts

from ..pieces import Item, Piece, Prompts
from .dataset import RawDataset, TextAnswer
from .fields import field

RATIOS = (1.0, 0.0, 0.0)
# What every equation of Math23K begins with.
_UNKNOWN = "x="


def make_math_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """{"text": "...", "equation": "x=..."}: a problem and its equation, without the x=."""
    equation = field(record, "equation", str)
    if not equation.startswith(_UNKNOWN):
        raise DataError(f"'equation' must begin with {_UNKNOWN!r}; found {equation!r:.60}")
    equation = equation[len(_UNKNOWN) :]
    return [_item(field(record, "text", str), equation, prompts)]


def make_lcsts_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """{"text": "...", "summary": "..."}: a message and its summary."""
    return [_item(field(record, "text", str), field(record, "summary", str), prompts)]


def make_wmt_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """{"source": "Chinese", "target": "English"}."""
    # kept (cpm2_datasets): the original translates what is called target into what is called source.
    return [_item(field(record, "target", str), field(record, "source", str), prompts)]


def _item(text: str, answer: str, prompts: SoftPrompts | None) -> Item:
    return Item(_around(text, prompts), [answer], is_closed=True)


def _around(text: str, prompts: SoftPrompts | None) -> list[Piece]:
    if prompts is None:
        return [text]
    # kept: the second share is ignored.
    ratios = prompts.ratios or RATIOS
    first, last = int(ratios[0] * prompts.length), int((ratios[0] + ratios[2]) * prompts.length)
    return [Prompts(0, first), text, Prompts(first, last)]


MATH = RawDataset(make_math_items, TextAnswer("equation", before=_UNKNOWN), long_text="text")
LCSTS = RawDataset(make_lcsts_items, TextAnswer("summary"), long_text="text")
WMT = RawDataset(make_wmt_items, TextAnswer("source"), long_text="target")


def text_to_text(source: str, target: str) -> RawDataset:
    """Any other records, with a text under `source` that becomes the text under `target`.

    Where a record has `options`, a list or an object of texts, the task likelihood chooses from them.
    """

    def make_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
        return [_item(field(record, source, str), field(record, target, str), prompts)]

    return RawDataset(make_items, TextAnswer(target, options="options"), long_text=source)
