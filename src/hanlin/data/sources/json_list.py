"""A JSON file that is one list of records, as many published data sets are; read whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError

_BLANK = " \t\r\n"


class JsonListSource:
    """The entries of the list; each knows its line."""

    def __init__(self, path: Path) -> None:
        """Raises: DataError when the file is no JSON list, with the line where it ceases to be one."""
        self.path = path
        data = path.read_bytes()
        self.fingerprint = hashlib.sha256(data).hexdigest()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
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
        return self._records[row]

    def where(self, row: int) -> str:
        return f"{self.path}:{self._lines[row]} (entry {row + 1})"


def is_json_list(path: Path) -> bool:
    """Whether the first character of a file is a bracket."""
    with path.open("rb") as stream:
        return stream.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _parse(text: str) -> tuple[list[Any], list[int]]:
    """The entries and where each begins."""
    decoder, records, starts = json.JSONDecoder(), [], []
    at = _skip(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        record, end = decoder.raw_decode(text, at)
        records.append(record)
        starts.append(at)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("a comma or the list's end is expected", text, at)
    if rest := text[at + 1 :].strip(_BLANK):
        raise json.JSONDecodeError(f"{rest[:20]!r} stands behind the list's end", text, at + 1)
    return records, starts


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
