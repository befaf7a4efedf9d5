"""The documents of text files, read in pieces: one a line or a file, text or JSON, plain or packed (gzip, zstd).

A piece is the same bytes whenever the same files are read, so what was made of it can be found again by its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hanlin.core.errors import DataError
from hanlin.data.sources.jsonl import BOM, parse_row
from hanlin.data.sources.packed import name_inside, opened

Per = Literal["line", "file"]

PIECE_BYTES = 1 << 20
_JSON = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class LineBlock:
    """Some lines of a file from line number `line` on, or all of it as one document (line 0)."""

    path: Path
    line: int
    content: bytes


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
            found.update(f"{len(block.content)} {block.line > 0} {_is_json(block.path)}\0".encode() + block.content)
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
        return f"{block.path}:{block.line + self.row}" if block.line else str(block.path)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of these paths, those of a folder by name; hidden ones are left out.

    Raises: DataError.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file())
            found += sorted(file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts))
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder; give text or JSON lines, also packed")
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no files in there; give text or JSON lines, also packed")
    return found


def read_pieces(files: Sequence[Path], per: Per = "line") -> Iterator[CorpusPiece]:
    """All documents of the files in their order, about a megabyte at a time; a line, or a file, is never cut.

    Raises: DataError for a file that cannot be read.
    """
    if per == "line":
        for path in files:
            yield from _lines(path)
        return
    blocks: list[LineBlock] = []
    for path in files:
        with opened(path) as (_, stream):
            blocks.append(LineBlock(path, 0, stream.read()))
        if sum(len(block.content) for block in blocks) >= PIECE_BYTES or path == files[-1]:
            yield CorpusPiece(tuple(blocks), sum(block.path.stat().st_size for block in blocks))
            blocks = []


def read_documents(piece: CorpusPiece, key: str) -> Iterator[str | BadText]:
    """The texts of a piece, stripped, without empty lines; key: of the text in a JSON object."""
    for place, block in enumerate(piece.blocks):
        is_json = _is_json(block.path)
        rows = block.content.split(b"\n") if block.line else [block.content]
        for number, row in enumerate(rows):
            if not (row := row.removeprefix(BOM).strip()):
                continue
            try:
                yield _text_of_json(row, key) if is_json else _decode(row)
            except ValueError as error:
                yield BadText(place, number, str(error))


def _lines(path: Path) -> Iterator[CorpusPiece]:
    line, before = 1, 0
    with opened(path) as (raw, stream):
        while content := stream.read(PIECE_BYTES):
            content += stream.readline()
            yield CorpusPiece((LineBlock(path, line, content),), raw.tell() - before)
            line, before = line + content.count(b"\n"), raw.tell()


def _is_json(path: Path) -> bool:
    return name_inside(path).suffix in _JSON


def _decode(row: bytes) -> str:
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{row[error.start]:02x}") from None


def _text_of_json(row: bytes, key: str) -> str:
    record = parse_row(row)
    if key not in record:
        raise ValueError(f"no key {key!r} (it has: {', '.join(record)})")
    if not isinstance(record[key], str):
        raise ValueError(f"the value of {key!r} must be a text, found {record[key]!r:.60}")
    return record[key].strip()
