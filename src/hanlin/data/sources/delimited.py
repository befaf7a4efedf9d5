"""Tables in text, CSV and TSV: the first line names the columns, a row is a dict of texts, read when it is asked for.

Quoting is that of RFC 4180 (a value in quotation marks may hold the delimiter, line ends, and quotation marks doubled);
a mark inside a value that does not begin with one is text. UTF-8 with or without a byte order mark, and GB18030 (GBK),
in which Excel saves in China; packed files as well. Held in memory is what `jsonl.py` holds.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.json_text import decode_utf8
from hanlin.data.file_array import FileBytes
from hanlin.data.sources.jsonl import MAX_LINE_BYTES, SCAN_BYTES, find_lines
from hanlin.data.sources.packed import name_inside, read_unpacked
from hanlin.data.sources.records import BadRowError

log = logging.getLogger(__name__)

ENDINGS = (".csv", ".tsv")

_MARK = ord('"')
_CLOSED = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')  # the rest of a quoted value, with its last mark
_CLOSED_TEXT = re.compile(r'[^"]*+(?:""[^"]*+)*+"')
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_MOST_COLUMNS = 1 << 16


class DelimitedSource:
    """The rows of a CSV or TSV file; blank lines are none."""

    def __init__(self, path: Path) -> None:
        """Raises: DataError for a file that is no table: without a header, or with a quotation that never ends."""
        self.path = path
        self._bytes = read_unpacked(path)
        self._encoding = _tell_encoding(self._bytes)
        starts, ends = find_lines(self._bytes)
        first = next((line for line in range(len(starts)) if self._bytes[starts[line] : ends[line]].strip()), None)
        if first is None:
            raise DataError(f"{path}: the file holds no rows; expected the names of the columns in its first line")
        self._delimiter = _tell_delimiter(path, self._header_bytes(first, starts, ends))
        self._starts, self._ends, self._lines, self._last_lines = _join_quoted(
            path, self._bytes, starts, ends, self._delimiter.encode()
        )
        self.names = self._read_names()
        if len(self) == 0:
            raise DataError(f"{path}: the file holds no rows behind the names of its columns")
        if self._encoding != "utf-8":
            log.warning("%s: is not UTF-8 and is read as GB18030 (GBK); if that is wrong, save the file as UTF-8", path)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        content = self._bytes
        digest = content.sha256 if isinstance(content, FileBytes) else hashlib.sha256(content).hexdigest()
        return f"table {self._delimiter!r} {digest}"

    @property
    def kind(self) -> str:
        mark = {",": "commas", "\t": "tabs", ";": "semicolons"}[self._delimiter]
        return f"table with {mark}, {self._encoding.upper()}"

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> dict[str, str]:
        """Raises: BadRowError."""
        try:
            values = self._values(row + 1)
            if len(values) != len(self.names):
                raise ValueError(f"{_count(len(values), 'value')}, the first line names {len(self.names)} columns")
        except ValueError as error:
            last, line = int(self._last_lines[row + 1]), int(self._lines[row + 1])
            reach = f" (a quoted value takes the row on to line {last})" if last > line else ""
            raise BadRowError(self.where(row), f"{error}{reach}") from None
        return dict(zip(self.names, values, strict=True))

    def where(self, row: int) -> str:
        return f"{self.path}:{self._lines[row + 1]}"

    def _values(self, place: int) -> list[str]:
        """Those of the row at a place, 0: the names.

        Raises: ValueError.
        """
        size = int(self._ends[place] - self._starts[place])
        if size > MAX_LINE_BYTES:
            raise ValueError(f"a row of {size:,} bytes; at most {MAX_LINE_BYTES:,} make a record")
        text = _decode(self._bytes[self._starts[place] : self._ends[place]], self._encoding)
        return list(_split(text.removesuffix("\r"), self._delimiter))

    def _header_bytes(self, line: int, starts: np.ndarray, ends: np.ndarray) -> bytes:
        return self._bytes[starts[line] : min(int(ends[line]), int(starts[line]) + MAX_LINE_BYTES)]

    def _read_names(self) -> list[str]:
        """Raises: DataError."""
        place = f"{self.path}:{self._lines[0]}"
        try:
            names = [name.strip() for name in self._values(0)]
        except ValueError as error:
            raise DataError(f"{place}: the names of the columns cannot be read: {error}") from None
        if problem := _problem_of_names(names):
            raise DataError(f"{place}: {problem}")
        return names


def _problem_of_names(names: list[str]) -> str:
    """What is wrong with a header, empty where nothing is."""
    if names[0][:1] in ("{", "["):
        return "the first line is JSON, where the names of the columns are expected; name the file .jsonl or .json"
    if any("\r" in name for name in names):
        return "the lines end with a carriage return alone; save the file with line feeds"
    if len(names) > _MOST_COLUMNS:
        return f"the first line names {len(names):,} columns; at most {_MOST_COLUMNS:,} are read"
    if "" in names:
        return (
            f"column {names.index('') + 1} of {len(names)} has no name in the first line; name it, or leave the column "
            "out (pandas writes its row numbers so: to_csv(..., index=False))"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        return f"two columns are named {twice!r}; rename one"
    return ""


def _tell_encoding(data: bytes | FileBytes) -> str:
    """utf-8; gb18030 where the first piece with more than ASCII is mostly no UTF-8, and nearly all of it GB18030."""
    for at in range(0, len(data), SCAN_BYTES):
        piece = data[at : at + SCAN_BYTES]
        if piece.isascii():
            continue
        broken = _read_replacing(piece, "utf-8").count(_BROKEN)
        if not broken:
            return "utf-8"
        read = _read_replacing(piece, "gb18030")
        letters = sum(map(len, _NOT_ASCII.findall(read)))
        return "gb18030" if 2 * broken > letters and 10 * read.count(_BROKEN) <= broken else "utf-8"
    return "utf-8"


def _read_replacing(piece: bytes, encoding: str) -> str:
    """The text of a piece of a file, whose last character may be cut, with a mark for each byte that is none."""
    return codecs.getincrementaldecoder(encoding)("replace").decode(piece)


def _decode(row: bytes, encoding: str) -> str:
    """Raises: ValueError."""
    if encoding == "utf-8":
        text = decode_utf8(row)
    else:
        try:
            text = row.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"not GB18030, as the rows before: byte {error.start + 1} of the row") from None
    if "\0" in text:
        raise ValueError(f"NUL byte at character {text.index(chr(0)) + 1}; the file is damaged or not text")
    return text


def _tell_delimiter(path: Path, header: bytes) -> str:
    """A tab for .tsv; for .csv a comma or, where its first line has none, the tab or semicolon that it has."""
    if name_inside(path).suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in (",", "\t", ";") if mark.encode() in header), ",")


def _join_quoted(
    path: Path, data: bytes | FileBytes, starts: np.ndarray, ends: np.ndarray, delimiter: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Start, end, first and last line number of every row that is not blank: lines of one quoted value are one row.

    Raises: DataError.
    """
    is_head = np.ones(len(starts), bool)  # the line begins a row
    opened_at = None
    for line in _lines_with_marks(data, starts):
        if opened_at is None:
            opened_at = line
        elif ends[line] - starts[opened_at] > MAX_LINE_BYTES:
            break
        if ends[line] - starts[line] > MAX_LINE_BYTES:
            opened_at = None  # a bad row by itself
        elif not _ends_quoted(data[starts[line] : ends[line]], delimiter, is_quoted=opened_at != line):
            is_head[opened_at + 1 : line + 1] = False
            opened_at = None
    if opened_at is not None:
        raise DataError(
            f'{path}:{opened_at + 1}: a value begins with a quotation mark (") that no other one closes in the rest of '
            "the file, or in as much as makes a row; mend it, or double the marks inside a quoted value"
        )
    heads = np.flatnonzero(is_head)
    lasts = np.append(heads[1:], len(starts)) - 1
    is_blank = ends[lasts] <= starts[heads]
    for row in np.flatnonzero(ends[lasts] - starts[heads] == 1):
        is_blank[row] = data[starts[heads[row]] : ends[lasts[row]]] == b"\r"
    heads, lasts = heads[~is_blank], lasts[~is_blank]
    return starts[heads], ends[lasts], heads + 1, lasts + 1


def _lines_with_marks(data: bytes | FileBytes, starts: np.ndarray) -> Iterator[int]:
    """The lines that hold a quotation mark."""
    last = -1
    for at in range(0, len(data), SCAN_BYTES):
        marks = at + np.flatnonzero(np.frombuffer(data[at : at + SCAN_BYTES], np.uint8) == _MARK)
        lines = np.unique(np.searchsorted(starts, marks, side="right") - 1)
        yield from lines[lines > last].tolist()  # the first one may go on from the piece before
        last = int(lines[-1]) if len(lines) else last


def _ends_quoted(line: bytes, delimiter: bytes, is_quoted: bool) -> bool:
    """Whether the end of a line stands within a quoted value; is_quoted: whether its beginning does."""
    at, opening = 0, delimiter + b'"'
    if not is_quoted:
        if line[:1] == b'"':
            at = 1
        elif (found := line.find(opening)) >= 0:
            at = found + len(opening)
        else:
            return False
    while closed := _CLOSED.match(line, at):
        if (found := line.find(opening, closed.end())) < 0:
            return False
        at = found + len(opening)
    return True


def _split(text: str, delimiter: str) -> Iterator[str]:
    """The values of a row.

    Raises: ValueError.
    """
    at = 0
    while True:
        if text.startswith('"', at):
            closed = _CLOSED_TEXT.match(text, at + 1)
            if closed is None:
                raise ValueError(f"the quotation mark at character {at + 1} is not closed")
            yield text[at + 1 : closed.end() - 1].replace('""', '"')
            at = closed.end()
            if at < len(text) and text[at] != delimiter:
                near = text[max(at - 12, 0) : at + 12]
                raise ValueError(
                    f"character {at + 1} stands behind the end of a quoted value, near {near!r}; double the quotation "
                    "marks inside a quoted value"
                )
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            yield text[at:end]
            at = end
        if at >= len(text):
            return
        at += 1


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
