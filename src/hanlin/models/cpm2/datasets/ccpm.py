"""CCPM: which line of classical poetry does a translation into modern Chinese belong to?

A record: {"translation": "...", "choices": ["...", "...", "...", "..."], "answer": 1}. The answer is a number word.
Rows of the other published form, {"target": "1", "input": "[翻译]...[0]...[答案]"}, become such records.
"""

from __future__ import annotations

from typing import Any

from hanlin.data.processor import SoftPrompts
from hanlin.models.common.ccpm import ccpm_parts

from ..pieces import Item, Prompts
from .choices import NUMBERS, RATIOS, between, num_choice_prompts, write_choices
from .dataset import RawDataset, WordAnswer
from .fields import chosen, field, texts


def make_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """Without prompts: 选项：一、…；二、…；文章：…"""
    translation, choices = field(record, "translation", str), texts(record, "choices")
    listed = write_choices(choices, prompts)
    if prompts is None:
        pieces = ["选项：", *listed, "文章：", translation]
    else:
        begin, (first, second) = num_choice_prompts(choices), prompts.borders(RATIOS)[:2]
        rest = Prompts(second, prompts.length)
        pieces = [Prompts(begin, first), *listed, *between(prompts, 1), translation, rest]
    return [Item(pieces, [NUMBERS[chosen(record, "answer", len(choices))]], is_closed=False)]


def _options(record: Any) -> range:
    return range(len(texts(record, "choices")))


def _records(row: Any) -> list[Any]:
    if not isinstance(row, dict) or "input" not in row:
        return [row]
    text, choices, answer = ccpm_parts(row)
    return [{"translation": text, "choices": choices, **({} if answer is None else {"answer": answer})}]


DATA_SET = RawDataset(make_items, WordAnswer("answer", NUMBERS, _options), long_text="translation", records=_records)
