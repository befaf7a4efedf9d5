"""Values of a raw record, or a message that says what is wrong with it."""

from __future__ import annotations

from typing import Any, TypeVar

from hanlin.core.errors import DataError

Value = TypeVar("Value")


def field(record: Any, key: str, kind: type[Value]) -> Value:
    """The value of a key.

    Raises: DataError when it is not there or of another type.
    """
    if not isinstance(record, dict):
        raise DataError(f"an object with {key!r} is expected; found {_short(record)}")
    if key not in record:
        raise DataError(f"the key {key!r} is missing; found {', '.join(map(repr, record)) or 'none'}")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{key!r} must be of the type {kind.__name__}; found {_short(value)}")
    return value


def texts(record: Any, key: str) -> list[str]:
    """A list of texts.

    Raises: DataError.
    """
    values = field(record, key, list)
    if odd := [value for value in values if not isinstance(value, str)]:
        raise DataError(f"{key!r} must be a list of texts; found {_short(odd[0])} in it")
    return values


def chosen(record: Any, key: str, count: int) -> int:
    """A whole number from 0 to below `count`.

    Raises: DataError.
    """
    value = field(record, key, int)
    if not 0 <= value < count:
        raise DataError(f"{key!r} must be from 0 to {count - 1}; found {value}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
