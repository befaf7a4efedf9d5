"""CCPM's raw rows: a translation into modern Chinese, and the lines of classical poetry that it may belong to."""

from __future__ import annotations

import re
from typing import Any

from hanlin.core.errors import DataError

_RAW = re.compile(r"\[翻译\](?P<text>[^\[\]]*)(?P<choices>(?:\[\d+\][^\[\]]*)+)\[答案\]", re.DOTALL)
_CHOICE = re.compile(r"\[(\d+)\]([^\[\]]*)")


def ccpm_parts(row: dict[str, Any]) -> tuple[str, list[str], int | None]:
    """Text, choices and the number of the right one (None: not said) of a raw row.

    Two forms: {"target": "3", "input": "[翻译]text[0]a[1]b[2]c[3]d[答案]"} and
    {"translation": text, "choices": [a, b, c, d], "answer": 3}; the answer may be missing.
    Raises: DataError.
    """
    if "translation" in row:
        return _parts_of_fields(row)
    if "input" not in row:
        raise DataError(f"no CCPM row: expected the keys target and input, or translation and choices; found {[*row]}")
    found = _RAW.fullmatch(row["input"]) if isinstance(row["input"], str) else None
    if not found:
        raise DataError("no CCPM row: `input` must read [翻译]text[0]...[1]...[2]...[3]...[答案]")
    choices = _CHOICE.findall(found["choices"])
    if [int(number) for number, _ in choices] != list(range(len(choices))):
        raise DataError(f"the choices must be numbered 0, 1, 2, ...; found {[number for number, _ in choices]}")
    return found["text"], [choice for _, choice in choices], _whole_number(row.get("target"))


def _parts_of_fields(row: dict[str, Any]) -> tuple[str, list[str], int | None]:
    text, choices = row["translation"], row.get("choices")
    if not isinstance(text, str) or not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise DataError("no CCPM row: `translation` must be a text and `choices` a list of texts")
    return text, choices, _whole_number(row.get("answer"))


def _whole_number(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    raise DataError(f"the answer must be the number of a choice, found {value!r}")
