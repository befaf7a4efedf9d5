"""A data file as it lies there, and the records of a block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.data.file_array import FileBytes

from .meta import HEAD, META, BeeFile

MARKER, BLOCK_END = 0x1F, 0x00


def open_file(folder: Path, file: BeeFile) -> FileBytes:
    """Its blocks.

    Raises: DataError when they are not all there.
    """
    path = folder / file.file_name
    if not path.is_file():
        raise DataError(f"{path}: {META} lists this file, but it is missing; restore it, or use `compact_bee`")
    size, expected = path.stat().st_size, file.num_blocks * file.block_size
    if size < expected:
        raise DataError(
            f"{path}: cut off in block {file.block_begin + size // file.block_size} at offset "
            f"{size % file.block_size}: {size:,} bytes, {META} says {expected:,}; copy it again"
        )
    return FileBytes(path, expected)


def records(block: bytes, path: str, file: BeeFile, number: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Start and size of the payloads of one block, from the record at `offset` on.

    Raises: DataError.
    """
    while offset < len(block) and block[offset] != BLOCK_END:
        where = f"{path}: block {file.block_begin + number}, offset {offset}"
        if block[offset] != MARKER:
            raise DataError(
                f"{where}: found 0x{block[offset]:02x}, expected a record (0x1f) or the end of the block (0x00); "
                "the file is damaged"
            )
        start = offset + HEAD.size
        size = HEAD.unpack_from(block, offset)[1] if start <= len(block) else 0
        if start + size > len(block):
            raise DataError(f"{where}: a record of {size:,} bytes does not fit its block; the file is damaged")
        yield start, size
        offset = start + size
