"""KdConv: go on with a dialogue that has a knowledge graph.

A record: {"history": ..., "kg": ..., "response": "..."}; history and graph may be any values, written as Python does.
"""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import ConfigError
from hanlin.core.settings import PromptSettings

from ..pieces import Item
from .fields import field

MAX_LENGTH = 512


def make_items(record: Any, prompts: PromptSettings | None = None) -> list[Item]:
    """历史：… 图谱：…"""
    if prompts is not None:
        raise ConfigError("KdConv has no template with prompts")
    text = f"历史：{field(record, 'history', object)} 图谱：{field(record, 'kg', object)}"
    return [Item([text], [field(record, "response", str)], is_closed=True, max_length=MAX_LENGTH)]
