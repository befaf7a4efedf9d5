"""JSON lines with random access: one pass finds the lines, a row is parsed when it is asked for.

A byte order mark at the start, CRLF line ends, blank lines and packed files are accepted; everything else that is odd
is a `BadRowError` that says what and where. Held in memory: where each row begins and ends and its line number, 24
bytes a row, and up to 64 MB of a packed file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file
from hanlin.core.json_text import decode_utf8, parse_json
from hanlin.data.file_array import FileBytes
from hanlin.data.sources.packed import name_inside, read_unpacked
from hanlin.data.sources.records import BadRowError

BOM = b"\xef\xbb\xbf"
SCAN_BYTES = 1 << 26
MAX_LINE_BYTES = 1 << 25
"""A longer line is no record; to encode it would take a hundred times its size."""

_OF_TEXT = (
    '; plain text has no rows: write each text as a line {"text": "..."}, or make a corpus of it (hanlin prepare --to)'
)
CUT_OFF = "not JSON: the file ends in the middle of this row; it was cut off while it was written"


class JsonlSource:
    """The rows of a JSONL file; blank lines are no rows."""

    kind = "JSON lines"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = read_unpacked(path)
        self._starts, self._ends, self._lines = _find_rows(self._bytes)
        if len(self._starts) == 0:
            raise DataError(f"{path}: the file holds no rows; expected one JSON object a line")

    @property
    def fingerprint(self) -> str:
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return self._bytes.sha256 if isinstance(self._bytes, FileBytes) else hashlib.sha256(self._bytes).hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        size = int(self._ends[row] - self._starts[row])
        if size > MAX_LINE_BYTES:
            raise BadRowError(self.where(row), f"a line of {size:,} bytes; at most {MAX_LINE_BYTES:,} make a record")
        line = self._bytes[self._starts[row] : self._ends[row]]
        try:
            return parse_row(line, is_cut=self._is_cut(row))
        except ValueError as error:
            hint = _OF_TEXT if name_inside(self.path).suffix.lower() == ".txt" else ""
            raise BadRowError(self.where(row), f"{error}{hint}") from None

    def where(self, row: int) -> str:
        return f"{self.path}:{self._lines[row]}"

    def _is_cut(self, row: int) -> bool:
        """Whether the file ends without a line end after this row."""
        return int(self._ends[row]) == len(self._bytes)


def parse_row(line: bytes, *, is_cut: bool = False) -> dict[str, Any]:
    """Parse one line; `is_cut`: nothing follows it, not even a line end.

    Raises: ValueError with the reason in a user's words.
    """
    text = _decode(line, is_cut)
    try:
        record = parse_json(text.strip(" \t\r"))
    except json.JSONDecodeError as error:
        raise ValueError(_explain(error, text, is_cut)) from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object {{...}}, found {_kind(record)}; write one object a line")
    return record


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Write records, one a line, no ASCII escaping; the file appears whole or not at all. Returns their number."""
    count = 0
    with replaced_file(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def find_lines(data: bytes | FileBytes) -> tuple[np.ndarray, np.ndarray]:
    """Start (behind a byte order mark) and end (line feed not included) of every line."""
    feeds = [
        at + np.flatnonzero(np.frombuffer(data[at : at + SCAN_BYTES], np.uint8) == 0x0A)
        for at in range(0, len(data), SCAN_BYTES)
    ]
    ends = np.concatenate([*feeds, [len(data)]]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if data[:3] == BOM:
        starts[0] = 3
    return starts, ends


def _find_rows(data: bytes | FileBytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end and line number of every line that is not blank."""
    starts, ends = find_lines(data)
    is_blank = starts >= ends
    for at in range(0, len(data), SCAN_BYTES):  # the first byte of each line, piece by piece
        codes = np.frombuffer(data[at : at + SCAN_BYTES], np.uint8)
        first, end = np.searchsorted(starts, [at, at + len(codes)])
        inside = first + np.flatnonzero(~is_blank[first:end])
        is_blank[inside] = codes[starts[inside] - at] <= 0x20
    for line in np.flatnonzero(is_blank & (starts < ends)):  # few: lines that begin with white space
        is_blank[line] = not data[starts[line] : ends[line]].strip(b" \t\r")
    kept = np.flatnonzero(~is_blank)
    return starts[kept], ends[kept], kept + 1


def _decode(line: bytes, is_cut: bool) -> str:
    try:
        text = decode_utf8(line)
    except ValueError:
        if is_cut and _is_cut_in_character(line):
            raise ValueError(CUT_OFF) from None
        raise
    if "\0" in text:
        raise ValueError(f"NUL byte at column {text.index(chr(0)) + 1}; the file is damaged or not text")
    return text


def _is_cut_in_character(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _explain(error: json.JSONDecodeError, text: str, is_cut: bool) -> str:
    column = error.pos + 1 + len(text) - len(text.lstrip(" \t\r"))
    if is_cut and _is_unfinished(error):
        return CUT_OFF
    if text.strip() in ("{", "["):
        return "not JSON: a record must stand on one line, this one is spread over several lines"
    if text.startswith("\ufeff"):
        return "not JSON: a byte order mark inside the file (files joined together?); remove it"
    return f"not JSON: {error.msg} at column {column}{_near(error)}"


def _is_unfinished(error: json.JSONDecodeError) -> bool:
    rest = error.doc[error.pos :].rstrip()
    starts_word = any(word.startswith(rest) for word in ("null", "true", "false"))
    return starts_word or len(rest) <= 1 or error.msg.startswith("Unterminated string")


def _near(error: json.JSONDecodeError) -> str:
    near = error.doc[max(0, error.pos - 12) : error.pos + 12]
    return f", near {near!r}" if near.strip() else ""


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
