"""LCQMC: do two questions mean the same?

A record: {"sentence1": "...", "sentence2": "...", "label": 0 or 1}. The answer is one word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hanlin.data.processor import SoftPrompts

from ..pieces import Item, Mark, Piece, Prompts
from .dataset import RawDataset, WordAnswer
from .fields import chosen, field

WORDS = (Mark("矛盾"), Mark("相似"))
RATIOS = (0.5, 0.5, 0.0)


def make_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """Without prompts: “…”与“…”的意思<s_0>."""
    first, second = field(record, "sentence1", str), field(record, "sentence2", str)
    if prompts is None:
        pieces = [Mark("“"), first, Mark("”"), Mark("与"), Mark("“"), second, Mark("”"), Mark("的"), Mark("意思")]
        pieces.append(Mark("<s_0>"))
    else:
        pieces = _with_prompts(first, second, prompts)
    return [Item(pieces, [WORDS[chosen(record, "label", len(WORDS))]], is_closed=False)]


def _with_prompts(first: str, second: str, prompts: SoftPrompts) -> Sequence[Piece]:
    before, between = prompts.borders(RATIOS)[:2]
    has_middle = (prompts.ratios or RATIOS)[1] > 0
    middle = [] if has_middle else [Mark("；")]
    return [Prompts(0, before), first, *middle, Prompts(before, between), second, Prompts(between, prompts.length)]


def _options(record: Any) -> range:
    del record  # they are the same for all
    return range(len(WORDS))


DATA_SET = RawDataset(make_items, WordAnswer("label", WORDS, _options), long_text="sentence1")
