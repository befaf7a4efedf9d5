"""Reading raw files of data sets: the rows of JSON lines, and their fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.sources import open_records


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each row of a JSON lines file.

    Raises: DataError.
    """
    source = open_records(path)
    for number in range(len(source)):
        row = source[number]
        if not isinstance(row, dict):
            raise DataError(f"{source.where(number)}: expected an object, found {row!r:.40}")
        yield source.where(number), row


def field(row: dict[str, Any], name: str, kind: type, where: str = "") -> Any:
    """A field that must be there and of its kind.

    Raises: DataError.
    """
    value = row.get(name)
    if not isinstance(value, kind):
        start = f"{where}: " if where else ""
        raise DataError(f'{start}"{name}": expected a {kind.__name__}, found {value!r:.40}')
    return value
