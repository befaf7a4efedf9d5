"""A JSON file that is one list of records, as many published data sets are; read whole, by the rules of JSON lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.json_text import decode_utf8, parse_json_at, skip_value
from hanlin.data.sources.jsonl import BOM, MAX_LINE_BYTES
from hanlin.data.sources.packed import first_bytes, read_unpacked
from hanlin.data.sources.records import BadRowError

_BLANK = " \t\r\n"


class JsonListSource:
    """The entries of the list; each knows its line. One that breaks a rule of ours is a bad row."""

    kind = "JSON list"

    def __init__(self, path: Path) -> None:
        """Raises: DataError when the file is no JSON list, with the line where it ceases to be one."""
        self.path = path
        data = bytes(read_unpacked(path))
        self.fingerprint = hashlib.sha256(data).hexdigest()
        text = _decode(path, data.removeprefix(BOM))
        try:
            self._records, starts = _parse(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not a JSON list: {error.msg} (column {error.colno})") from None
        if not self._records:
            raise DataError(f"{path}: the list is empty")
        self._lines = _lines(text, starts)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Any:
        record = self._records[row]
        if isinstance(record, _BadEntry):
            raise BadRowError(self.where(row), record.reason)
        return record

    def where(self, row: int) -> str:
        return f"{self.path}:{self._lines[row]} (entry {row + 1})"


def is_json_list(path: Path) -> bool:
    """Whether the first character of a file, unpacked, is a bracket."""
    try:
        start = first_bytes(path)
    except DataError:
        return False  # what is wrong with it is said when it is read
    return start.removeprefix(BOM).lstrip()[:1] == b"["


class _BadEntry:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _decode(path: Path, data: bytes) -> str:
    """The file's text.

    Raises: DataError that names the line.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        number, begin = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
    try:
        return decode_utf8(data[begin:].partition(b"\n")[0])
    except ValueError as error:
        raise DataError(f"{path}:{number}: {error}") from None


def _parse(text: str) -> tuple[list[Any], list[int]]:
    """The entries and where each begins."""
    records, starts = [], []
    at = _skip(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        record, end = _entry(text, at)
        records.append(record)
        starts.append(at)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("a comma stands before the list's end", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("a comma or the list's end is expected", text, at)
    if rest := text[at + 1 :].strip(_BLANK):
        raise json.JSONDecodeError(f"{rest[:20]!r} stands behind the list's end", text, at + 1)
    return records, starts


def _entry(text: str, at: int) -> tuple[Any, int]:
    """One entry, and where it ends; a `_BadEntry` for what is JSON but breaks another rule."""
    try:
        record, end = parse_json_at(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if text[at] not in "[{":  # NaN and its like: nothing says where it ends
            raise json.JSONDecodeError(str(error), text, at) from None
        return _BadEntry(str(error)), skip_value(text, at)
    if end - at > MAX_LINE_BYTES:
        return _BadEntry(f"an entry of {end - at:,} characters; at most {MAX_LINE_BYTES:,} make a record"), end
    return record, end


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _BLANK:
        at += 1
    return at


def _lines(text: str, starts: list[int]) -> list[int]:
    lines, line, at = [], 1, 0
    for start in starts:
        line += text.count("\n", at, start)
        lines.append(line)
        at = start
    return lines
