"""The documents of text files, read in pieces: one a line or a file, text or JSON lines, or one a row of any table;
plain or packed (gzip, zstd).

A piece is the same bytes whenever the same files are read, so what was made of it can be found again by its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hanlin.core.errors import DataError
from hanlin.core.json_text import decode_utf8
from hanlin.data.sources import BadRowError, DataFile
from hanlin.data.sources.columns import is_columns
from hanlin.data.sources.jsonl import BOM, parse_row
from hanlin.data.sources.opening import is_table, open_file
from hanlin.data.sources.packed import first_bytes, name_inside, opened
from hanlin.data.sources.several import (
    JSON_ENDINGS,
    each_once,
    files_below,
    is_beside_saved,
    is_pattern,
    is_saved_set,
    matches,
    saved_files,
)

Per = Literal["line", "file"]

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class LineBlock:
    """Some lines of a file from line number `line` on, or all of it as one document (line 0).

    Of a table the lines are its rows as JSON; places: where each lies; bad: those that cannot be used (their line is
    empty), and why.
    """

    path: Path
    line: int
    content: bytes
    places: tuple[str, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()

    @property
    def is_json(self) -> bool:
        return bool(self.places) or name_inside(self.path).suffix in JSON_ENDINGS


@dataclass(frozen=True)
class CorpusPiece:
    """weight: bytes of the files, packed as they are, that were read for it."""

    blocks: tuple[LineBlock, ...]
    weight: int

    @property
    def digest(self) -> str:
        """Hash of the contents and of the way they are read."""
        found = hashlib.blake2b(digest_size=16)
        for block in self.blocks:
            found.update(f"{len(block.content)} {block.line > 0} {block.is_json}\0".encode() + block.content)
            found.update(repr(block.bad).encode() if block.bad else b"")
        return found.hexdigest()


@dataclass(frozen=True)
class BadText:
    """A document that cannot be used, and why; block: its number in the piece; row: of its line in the block."""

    block: int
    row: int
    reason: str

    def where(self, piece: CorpusPiece) -> str:
        """File and line."""
        block = piece.blocks[self.block]
        if block.places:
            return block.places[self.row]
        return f"{block.path}:{block.line + self.row}" if block.line else str(block.path)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of these paths (files, folders, patterns), those of a folder by name; hidden ones are left out.

    Raises: DataError.
    """
    found: list[Path] = []
    for path in paths:
        if is_pattern(path):
            found += find_files(matches(path))
        elif path.is_dir() and is_saved_set(path):
            found += saved_files(path)
        elif path.is_dir():
            found += [file for file in files_below(path) if not is_beside_saved(file)]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder; give text or JSON lines, also packed")
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no files in there; give text or JSON lines, also packed")
    return each_once(found)


def read_pieces(files: Sequence[Path], per: Per = "line", key: str = "text") -> Iterator[CorpusPiece]:
    """All documents of the files in their order, about a megabyte at a time; a line, or a file, is never cut.

    key: of the text in a row.
    Raises: DataError for a file that cannot be read.
    """
    if per == "line":
        for path in files:
            yield from _rows(path, key) if is_table(path) else _lines(path)
        return
    blocks: list[LineBlock] = []
    for path in files:
        if is_columns(first_bytes(path, 8)):
            raise DataError(f"{path}: has a document in each row; that a file is one is for texts")
        with opened(path) as (_, stream):
            blocks.append(LineBlock(path, 0, stream.read()))
        if sum(len(block.content) for block in blocks) >= PIECE_BYTES or path == files[-1]:
            yield CorpusPiece(tuple(blocks), sum(block.path.stat().st_size for block in blocks))
            blocks = []


def read_documents(piece: CorpusPiece, key: str) -> Iterator[str | BadText]:
    """The texts of a piece, stripped, without empty lines; key: of the text in a JSON object."""
    for place, block in enumerate(piece.blocks):
        rows = block.content.split(b"\n") if block.line else [block.content]
        for number, row in enumerate(rows):
            if not (row := row.removeprefix(BOM).strip()):
                continue
            try:
                yield _text_of_json(row, key) if block.is_json else decode_utf8(row)
            except ValueError as error:
                yield BadText(place, number, str(error))
        yield from (BadText(place, number, reason) for number, reason in block.bad)


def _lines(path: Path) -> Iterator[CorpusPiece]:
    line, before = 1, 0
    with opened(path) as (raw, stream):
        while content := stream.read(PIECE_BYTES):
            content += stream.readline()
            yield CorpusPiece((LineBlock(path, line, content),), raw.tell() - before)
            line, before = line + content.count(b"\n"), raw.tell()


def _rows(path: Path, key: str) -> Iterator[CorpusPiece]:
    """Those of a table, each as a line of JSON with the text alone."""
    table, file_size, told = open_file(path, key), path.stat().st_size, 0
    block, size = _RowBlock(path), 0
    for number in range(len(table)):
        size += block.add(table, number, key)
        if size >= PIECE_BYTES or number == len(table) - 1:
            read = file_size * (number + 1) // len(table)
            yield CorpusPiece((block.finished(),), read - told)
            block, size, told = _RowBlock(path), 0, read


@dataclass
class _RowBlock:
    path: Path
    lines: list[bytes] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def add(self, table: DataFile, number: int, key: str) -> int:
        """Take a row; the bytes of it."""
        try:
            line = _line_of(table[number], key)
        except BadRowError as error:
            line = b""
            self.bad.append((len(self.lines), error.reason))
        self.lines.append(line)
        self.places.append(table.where(number))
        return len(line)

    def finished(self) -> LineBlock:
        return LineBlock(self.path, 1, b"\n".join(self.lines), tuple(self.places), tuple(self.bad))


def _line_of(row: Any, key: str) -> bytes:
    if isinstance(row, dict):
        row = {key: row[key]} if key in row else dict.fromkeys(row)
    return json.dumps(row, ensure_ascii=False).encode()


def _text_of_json(row: bytes, key: str) -> str:
    record = parse_row(row)
    if key not in record:
        raise ValueError(f"no key {key!r} (it has: {', '.join(record) or 'nothing'})")
    if not isinstance(record[key], str):
        raise ValueError(f"the value of {key!r} must be a text, found {record[key]!r:.60}")
    return record[key].strip()
