"""Records -> a data file of whole blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file

from .blocks import MARKER
from .meta import BLOCK_BYTES, HEAD, META, BeeFile, read_meta, write_meta
from .payload import PROTOCOL, Payload, write_payload


def write_bee(
    folder: Path,
    name: str,
    records: Iterable[Any],
    *,
    block_bytes: int | None = None,
    form: Payload = "json",
    protocol: int = PROTOCOL,
) -> BeeFile:
    """Add a data file to a data set; it appears with its last row or not at all.

    block_bytes: None = 16 MiB, or what the rows need if that is less. form: how rows are written (the original reads
    `pickle` unless told otherwise).
    Raises: DataError: the name is taken, a row is larger than a block, no rows.
    """
    files = read_meta(folder)
    _refuse_taken_name(folder, name, files)
    writer = _BlockWriter(block_bytes or BLOCK_BYTES)
    with replaced_file(folder / name) as stream:
        for number, record in enumerate(records, 1):
            payload = write_payload(record, form, protocol)
            if not writer.fits_a_block(payload):
                raise DataError(
                    f"{folder / name}: row {number} has {len(payload):,} bytes and is larger than a block of "
                    f"{writer.block_bytes:,}; take a larger block size"
                )
            writer.add(payload, stream)
        if writer.num_rows == 0:
            raise DataError(f"{folder / name}: there are no rows to write")
        writer.finish(stream, shrink=block_bytes is None)
    begin = files[-1].block_end if files else 0
    file = BeeFile(name, begin, begin + writer.num_blocks, writer.nbytes, writer.num_rows, False, writer.block_bytes)
    write_meta(folder, [*files, file])
    return file


def _refuse_taken_name(folder: Path, name: str, files: Sequence[BeeFile]) -> None:
    if any(file.file_name == name for file in files):
        raise DataError(f"{folder}: the data set has a file {name!r} already; take another name or another folder")
    if (folder / name).exists():
        raise DataError(
            f"{folder / name}: the file exists, but {META} does not know it; remove it or take another name"
        )
    if Path(name).name != name or name == META:
        raise DataError(f"{name!r} is no name for a data file")


class _BlockWriter:
    """Fills blocks with records; a block is closed with at least one zero byte."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.num_blocks = self.num_rows = self.nbytes = 0
        self._block = bytearray()

    def fits_a_block(self, payload: bytes) -> bool:
        return self._end_after(payload, 0) <= self.block_bytes

    def add(self, payload: bytes, stream: Any) -> None:
        if self._end_after(payload, len(self._block)) > self.block_bytes:
            self._close_block(stream)
        self._block += HEAD.pack(MARKER, len(payload)) + payload
        self.num_rows += 1
        self.nbytes += 4 + len(payload)

    def finish(self, stream: Any, *, shrink: bool) -> None:
        if shrink and self.num_blocks == 0:
            self.block_bytes = len(self._block) + 1
        self._close_block(stream)

    def _close_block(self, stream: Any) -> None:
        stream.write(self._block.ljust(self.block_bytes, b"\0"))
        self.num_blocks += 1
        self._block.clear()

    def _end_after(self, payload: bytes, used: int) -> int:
        return used + HEAD.size + len(payload) + 1
