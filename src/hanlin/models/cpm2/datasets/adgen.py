"""AdGen: advertise a product that is described by its title, tags and features.

A record: {"title": "...", "tags": ["..."], "feature": [["key", "value"], ...], "desc": "..."}; tags may be missing.
One that describes nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hanlin.data.processor import SoftPrompts

from ..pieces import Item, Mark, Piece, Prompts
from .dataset import RawDataset, TextAnswer
from .fields import field

_COMMA, _COLON, _END = Mark("，"), Mark("："), Mark("；")


def make_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """…；tag，tag；key：value，key：value； none for a record that describes nothing."""
    title, features = field(record, "title", str), field(record, "feature", list)
    tags = field(record, "tags", list) if "tags" in record else []
    parts = [[[title]] if title else [], [[tag] for tag in tags], [[key, _COLON, value] for key, value in features]]
    pieces = [piece for part in parts for piece in _listed(part)]
    before = [] if prompts is None else [Prompts(0, prompts.length)]
    return [Item([*before, *pieces], [field(record, "desc", str)], is_closed=True)] if pieces else []


def _listed(entries: Sequence[Sequence[Piece]]) -> list[Piece]:
    """Entries with commas between them and a semicolon behind the last one."""
    ends = [*(_COMMA for _ in entries[1:]), _END]
    return [piece for entry, end in zip(entries, ends, strict=False) for piece in (*entry, end)]


def _records(record: Any) -> list[Any]:
    return [record] if make_items({"desc": "", **record}) else []


DATA_SET = RawDataset(make_items, TextAnswer("desc"), long_text=None, records=_records)
