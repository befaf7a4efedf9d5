"""A source seen through a mapping: the keys of a raw row become the keys of a record.

`{"标题": "$title", "<ans>": "$text", "任务": "写诗"}`: a value that begins with "$" names a key of the raw row
("$a.b" goes deeper), any other value is taken as it is. This is the mapping form of CPM-Bee's data set files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.settings import DataSettings
from hanlin.data.sources import Source, open_source

__all__ = ["Transformed", "open_records", "transform"]


def open_records(path: Path, settings: DataSettings) -> Source:
    """The records of a file or folder, through `data.transform` where there is one.

    Raises: DataError.
    """
    source = open_source(path)
    return Transformed(source, settings.transform) if settings.transform else source


def transform(mapping: Mapping[str, Any], row: Any) -> Any:
    """The record that `mapping` makes of a raw row; nested mappings make nested records.

    Raises: DataError naming the key that the row lacks.
    """
    return {key: _value(wanted, row) for key, wanted in mapping.items()}


@dataclass(frozen=True)
class Transformed:
    """A source  whose records are made by a mapping."""

    source: Source
    mapping: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Any:
        return transform(self.mapping, self.source[number])

    def where(self, number: int) -> str:
        return self.source.where(number)

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} through {sorted(self.mapping.items())!r}"


def _value(wanted: Any, row: Any) -> Any:
    if isinstance(wanted, Mapping):
        return transform(wanted, row)
    if not (isinstance(wanted, str) and wanted.startswith("$")):
        return wanted
    value = row
    for key in wanted[1:].split("."):
        if not isinstance(value, Mapping) or key not in value:
            has = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise DataError(f"data.transform asks for {wanted!r}, but the row has no key {key!r} (it has: {has})")
        value = value[key]
    return value
