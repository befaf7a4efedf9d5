"""What a form of rows is, and what forms share: values of a row, names of sides, unread keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.core.errors import DataError
from hanlin.core.json_text import parse_json
from hanlin.data.forms.content import ChatMessage, Content

__all__ = [
    "Fit",
    "Form",
    "RawRow",
    "kind_of",
    "one_key",
    "read_tools",
    "system_of",
    "text_of",
    "unread_keys",
    "values_of",
]

RawRow = Mapping[str, Any]
Fit = Literal["whole", "question"]
"""What the keys of a row tell of a form: surely it, or only what may be the question of it."""


@dataclass(frozen=True)
class Form:
    """name: in `data.format`; title: in reports; signs: the keys of a row that tell the form; fits: how far a row has
    them; read: what it says, raises DataError; unread: what is to be said of keys that nothing reads; write: the row
    with an answer.
    """

    name: str
    title: str
    signs: Callable[[RawRow], Sequence[str]]
    fits: Callable[[RawRow], Fit | None]
    read: Callable[[RawRow], Content]
    unread: Callable[[RawRow], Sequence[str]]
    write: Callable[[RawRow, str], dict[str, Any]]


def values_of(row: RawRow, names: Iterable[str]) -> list[str]:
    """Those of the keys that a row has."""
    return [name for name in names if name in row]


def one_key(row: RawRow, names: Sequence[str], what: str) -> str | None:
    """The one of several names that a row has; None where it has none.

    Raises: DataError where it has several.
    """
    found = values_of(row, names)
    if len(found) > 1:
        raise DataError(
            f"both {found[0]!r} and {found[1]!r} could be {what}; say which with data.transform (docs/data.md)"
        )
    return found[0] if found else None


def text_of(row: RawRow, key: str, *, may_be_empty: bool = False) -> str:
    """A text under a key; one that may be empty may be null or missing too.

    Raises: DataError naming the key.
    """
    value = row.get(key)
    if may_be_empty and value is None:
        return ""
    if key not in row:
        raise DataError(f'no "{key}" (the row has: {", ".join(map(str, row)) or "none"})')
    if not isinstance(value, str):
        raise DataError(f'"{key}": expected a text, found {kind_of(value)}')
    if not may_be_empty and not value.strip():
        raise DataError(f'"{key}" is empty')
    return value


def is_blank(value: Any) -> bool:
    """Whether a value is a text of nothing: an answer that is wanted, not given."""
    return isinstance(value, str) and not value.strip()


def system_of(row: RawRow) -> list[ChatMessage]:
    """What a row says under `system`, as a message, if anything."""
    text = text_of(row, "system", may_be_empty=True)
    return [ChatMessage("system", text)] if text.strip() else []


def read_tools(row: RawRow, keys: Iterable[str] = ("tools", "functions")) -> tuple[Any, ...]:
    """The descriptions of tools: a list, or JSON of one in a text.

    Raises: DataError.
    """
    for key in keys:
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            try:
                value = parse_json(value)
            except ValueError as error:
                raise DataError(f'"{key}": a text that is no JSON ({error}); write a list of descriptions') from None
        if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
            raise DataError(f'"{key}": expected a list of descriptions (objects), found {kind_of(value)}')
        return tuple(value)
    return ()


def unread_keys(row: RawRow, known: Iterable[str]) -> list[str]:
    """What is to be said of the keys that a form does not read."""
    read = set(known)
    return [f'key "{key}" is not read' for key in row if key not in read]


def kind_of(value: Any) -> str:
    """What a value of JSON is, in a user's words."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value!r:.40}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return f"an object with the keys {', '.join(map(str, value)) or 'none'}"[:80]
    return type(value).__name__
