"""KdConv: go on with a dialogue that has a knowledge graph.

A record: {"history": ..., "kg": ..., "response": "..."}; history and graph may be any values, written as Python does.
"""

from __future__ import annotations

from typing import Any

from hanlin.data.processor import SoftPrompts

from ..pieces import Item, Prompts
from .dataset import RawDataset, TextAnswer
from .fields import field

MAX_LENGTH = 512


def make_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """历史：… 图谱：…"""
    text = f"历史：{field(record, 'history', object)} 图谱：{field(record, 'kg', object)}"
    # The original has no template with prompts; here they stand before the text and are not cut off.
    before = [] if prompts is None else [Prompts(0, prompts.length)]
    longest = MAX_LENGTH + (0 if prompts is None else prompts.length)
    return [Item([*before, text], [field(record, "response", str)], is_closed=True, max_length=longest)]


DATA_SET = RawDataset(make_items, TextAnswer("response"), long_text=None)
