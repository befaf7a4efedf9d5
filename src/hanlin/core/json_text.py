"""The one reader of JSON: a text -> its value, by one set of rules for rows, lists, configurations and messages.

Python's own reader keeps the last of two equal keys, reads NaN and 1e400, and keeps half a character, which no file can
hold; here each of these is refused, and so is what is nested so deeply that nothing could walk through it.
"""

from __future__ import annotations

import json
import re
from math import isinf
from typing import Any

__all__ = ["MOST_LEVELS", "check_json_value", "decode_utf8", "parse_json", "parse_json_at", "skip_value"]

MOST_LEVELS = 100
"""Of lists and objects in each other."""

# A text without an end is one token too: else each quotation mark in it would be tried, each to the end.
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_CLOSED_BY = {"[": "]", "{": "}"}


def parse_json(text: str) -> Any:
    """The value of a whole text.

    Raises: json.JSONDecodeError for what is no JSON, else ValueError with the reason in a user's words.
    """
    value, end = parse_json_at(text, _after_blanks(text, 0))
    if (rest := _after_blanks(text, end)) != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends.

    Raises: as `parse_json`.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError(f"nested too deeply; at most {MOST_LEVELS} levels are read") from None
    part = text[start:end] if start or end < len(text) else text
    if part.count("[") + part.count("{") > MOST_LEVELS and _levels(value) > MOST_LEVELS:
        raise ValueError(f"nested too deeply; at most {MOST_LEVELS} levels are read")
    if "\\u" in part:
        check_json_value(value)
    return value, end


def check_json_value(value: Any) -> None:
    """Whether JSON by these rules could hold a value of texts, numbers, lists and dicts.

    Raises: ValueError with the reason.
    """
    if _levels(value) > MOST_LEVELS:
        raise ValueError(f"nested too deeply; at most {MOST_LEVELS} levels are read")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"half a character: \\u{half:04x} without its other half") from None
    except ValueError:
        raise ValueError("a number is NaN or without end, which JSON does not have") from None


def skip_value(text: str, start: int) -> int:
    """Where the list or object that begins at `start` ends, whatever stands in it.

    Raises: json.JSONDecodeError when it does not end.
    """
    waiting: list[str] = []
    for token in _TOKENS.finditer(text, start):
        mark = token.group()
        if mark in _CLOSED_BY:
            waiting.append(_CLOSED_BY[mark])
        elif mark in ("]", "}") and (not waiting or waiting.pop() != mark):
            raise json.JSONDecodeError(f"{mark!r} closes nothing", text, token.start())
        if not waiting:
            return token.end()
    raise json.JSONDecodeError("a list or an object has no end", text, start)


def decode_utf8(data: bytes) -> str:
    """The text of bytes.

    Raises: ValueError that names the first byte that is no UTF-8, and the encoding that fits if one does.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02x} at byte {error.start + 1}"
        raise ValueError(f"not UTF-8: {place} of the line{_guess_encoding(data)}") from None


def _guess_encoding(data: bytes) -> str:
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    return " (it reads as GB18030; save the file as UTF-8)"


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _levels(value: Any) -> int:
    """How many lists and objects lie in each other, counted without going down a stack."""
    levels, inside = 0, [value]
    while inside := [one for one in inside if isinstance(one, list | dict)]:
        levels += 1
        inside = [part for one in inside for part in (one.values() if isinstance(one, dict) else one)]
    return levels


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"duplicate key {twice!r}; only one of its values could be kept")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"not JSON: {name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        raise ValueError(f"{digits:.40} is larger than any number that can be kept")
    return number


def _whole(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"{digits[:20]}... has {len(digits):,} digits; numbers have up to 40, write it as a text")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
)
