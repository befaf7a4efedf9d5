"""Reading raw files of data sets: the records that each row becomes, and the fields of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.convert import MadeRow
from hanlin.data.processor import tried
from hanlin.data.sources import open_records

__all__ = ["field", "is_beside", "make_rows", "read_objects", "text"]

_BESIDE = ("labels.json", "_answer.json")


def make_rows(path: Path, make: Callable[[dict[str, Any]], Sequence[Any]]) -> Iterator[MadeRow]:
    """Place and records of each row of a file; of one that is no good, why.

    make: the records of a row; raises DataError, and LeftOutError for a row that is left out on purpose.
    Raises: DataError when the file cannot be read at all.
    """
    source = open_records(path)
    for number in range(len(source)):
        row = tried(_object, source, number)
        yield source.where(number), row if isinstance(row, DataError) else tried(make, row)


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The rows of a small file that belongs to another one, such as its labels.

    Raises: DataError naming the first row that is no object.
    """
    source = open_records(path)
    return [_object(source, number) for number in range(len(source))]


def field(row: dict[str, Any], name: str, kind: type) -> Any:
    """A field that must be there and of its kind.

    Raises: DataError.
    """
    value = row.get(name)
    if not isinstance(value, kind):
        raise DataError(f'"{name}": expected a {kind.__name__}, found {value!r:.40}')
    return value


def text(row: dict[str, Any], name: str) -> str:
    """A text that holds more than white space.

    Raises: DataError.
    """
    value = field(row, name, str)
    if not value.strip():
        raise DataError(f'"{name}" is empty')
    return value


def is_beside(path: Path) -> bool:
    """Whether a file only belongs to another one, whose reader looks for it."""
    return path.name.endswith(_BESIDE)


def _object(source: Any, number: int) -> dict[str, Any]:
    row = source[number]
    if not isinstance(row, dict):
        raise DataError(f"{source.where(number)}: expected an object, found {row!r:.40}")
    return row
