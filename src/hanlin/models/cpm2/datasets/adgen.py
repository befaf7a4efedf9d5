"""AdGen: advertise a product that is described by its title, tags and features.

A record: {"title": "...", "tags": ["..."], "feature": [["key", "value"], ...], "desc": "..."}; tags may be missing.
One that describes nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.processor import SoftPrompts
from hanlin.data.sources.records import LeftOutError

from ..pieces import Item, Mark, Piece, Prompts
from .dataset import RawDataset, TextAnswer
from .fields import field, texts

_COMMA, _COLON, _END = Mark("，"), Mark("："), Mark("；")


def make_items(record: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """…；tag，tag；key：value，key：value； none for a record that describes nothing."""
    title, features = field(record, "title", str), _features(record)
    tags = texts(record, "tags") if "tags" in record else []
    parts = [[[title]] if title else [], [[tag] for tag in tags], [[key, _COLON, value] for key, value in features]]
    pieces = [piece for part in parts for piece in _listed(part)]
    before = [] if prompts is None else [Prompts(0, prompts.length)]
    return [Item([*before, *pieces], [field(record, "desc", str)], is_closed=True)] if pieces else []


def _features(record: Any) -> list[list[str]]:
    """Raises: DataError for a feature that is no key with its value."""
    features = field(record, "feature", list)
    for feature in features:
        is_pair = isinstance(feature, list) and len(feature) == 2 and all(isinstance(one, str) for one in feature)
        if not is_pair:
            raise DataError(f'\'feature\' must list pairs of texts, ["key", "value"]; found {feature!r:.60} in it')
    return features


def _listed(entries: Sequence[Sequence[Piece]]) -> list[Piece]:
    """Entries with commas between them and a semicolon behind the last one."""
    ends = [*(_COMMA for _ in entries[1:]), _END]
    return [piece for entry, end in zip(entries, ends, strict=False) for piece in (*entry, end)]


def _records(record: Any) -> list[Any]:
    """Raises: LeftOutError for a record that describes nothing, as in the original."""
    if isinstance(record, dict) and not make_items({"desc": "", **record}):
        raise LeftOutError("title, tags and feature are empty")
    return [record]


DATA_SET = RawDataset(make_items, TextAnswer("desc"), long_text=None, records=_records)
