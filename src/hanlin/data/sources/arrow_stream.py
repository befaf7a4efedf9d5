"""The Arrow stream format, as far as data sets of ids need it: columns of lists of whole numbers, uncompressed.

Layout: https://arrow.apache.org/docs/format/Columnar.html (IPC streaming format); its message heads are flatbuffers.
The file format, which is a stream with a footer, is read as well.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import DataError
from hanlin.data.file_array import FileArray, FileBytes

FILE_MAGIC = b"ARROW1\0\0"  # the file format: a stream after these bytes, and a footer that is not needed
CONTINUES = 0xFFFFFFFF
SCHEMA, RECORD_BATCH = 1, 3  # kinds of messages
INTEGER, LIST, LARGE_LIST = 2, 12, 21  # kinds of columns


@dataclass(frozen=True)
class _Column:
    name: str
    offset_dtype: np.dtype
    value_dtype: np.dtype


@dataclass(frozen=True)
class RecordBatch:
    """One record batch, and the number of its first row in the file.

    columns: by name, `[rows + 1]` where each row's list begins and ends, and the values of all lists.
    """

    file: Path
    first: int
    columns: dict[str, tuple[FileArray | np.ndarray, FileArray]]


def read_parts(path: Path, data: FileBytes) -> Iterator[RecordBatch]:
    """The record batches of a file; their columns are read from it when they are asked for.

    Raises: DataError.
    """
    columns: list[_Column] = []
    first = 0
    for kind, head, body in _messages(path, data):
        try:
            if kind == SCHEMA:
                columns = [_read_column(field) for field in head.tables(1)]
            elif kind == RECORD_BATCH:
                yield RecordBatch(path, first, _read_batch(head, body, columns, data))
                first += head.number(0, "q")
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        except (struct.error, IndexError):
            raise _damaged(path) from None


def _messages(path: Path, data: FileBytes) -> Iterator[tuple[int, _Table, int]]:
    """Kind, head and where the body starts, of every message of a file.

    Raises: DataError when the file is cut off.
    """
    at = len(FILE_MAGIC) if data[: len(FILE_MAGIC)] == FILE_MAGIC else 0
    while at + 8 <= len(data):
        mark, size = struct.unpack("<Ii", data[at : at + 8])
        if mark != CONTINUES:
            raise DataError(f"{path}: no Arrow stream at byte {at:,}; the file is damaged or of another kind")
        if size == 0:
            return
        try:
            message = _Table.root(data[at + 8 : at + 8 + max(size, 0)], 0)
            kind, head, length = message.number(1, "B"), message.table(2), message.number(3, "q")
        except (struct.error, IndexError):
            raise _damaged(path) from None
        body = at + 8 + size
        at = body + length
        if size < 0 or length < 0 or at > len(data):
            raise _damaged(path)
        yield kind, head, body
    if at != len(data):
        raise _damaged(path)


def _read_column(field: _Table) -> _Column:
    name, kind = field.text(0), field.number(2, "B")
    children = field.tables(5)
    if kind not in (LIST, LARGE_LIST) or children[0].number(2, "B") != INTEGER:
        raise ValueError(f'the column "{name}" holds no lists of whole numbers; only these are read')
    integer = children[0].table(3)
    sign, bits = "i" if integer.number(1, "?") else "u", integer.number(0, "i")
    if bits not in (8, 16, 32, 64):
        raise ValueError(f'the column "{name}" holds numbers of {bits} bits; the file is damaged')
    return _Column(name, np.dtype("<i4" if kind == LIST else "<i8"), np.dtype(f"<{sign}{bits // 8}"))


def _read_batch(
    head: _Table, body: int, columns: list[_Column], data: FileBytes
) -> dict[str, tuple[FileArray | np.ndarray, FileArray]]:
    """The arrays of a record batch: a list column has 2 nodes (length, nulls) and 4 buffers (offset, length)."""
    nodes, buffers = head.pairs(1), head.pairs(2)
    if head.has(3):
        raise ValueError("the data are compressed; write them anew without compression")
    counts = {rows for rows, _ in nodes[::2]}
    if len(nodes) != 2 * len(columns) or len(buffers) != 4 * len(columns) or len(counts) != 1:
        raise ValueError("a record batch does not fit its schema; the file is damaged")
    arrays = {}
    for number, column in enumerate(columns):
        (rows, no_lists), (values, no_values) = nodes[2 * number : 2 * number + 2]
        if no_lists or no_values:
            raise ValueError(f'the column "{column.name}" has missing values (null)')
        _, bounds_at, _, values_at = (body + start for start, _ in buffers[4 * number : 4 * number + 4])
        arrays[column.name] = (
            _array(data, column.offset_dtype, bounds_at, rows + 1) if rows else np.zeros(1, column.offset_dtype),
            _array(data, column.value_dtype, values_at, values),
        )
    return arrays


def _array(data: FileBytes, dtype: np.dtype, start: int, count: int) -> FileArray:
    if not 0 <= start <= start + count * dtype.itemsize <= len(data):
        raise ValueError("a column lies outside the file; it was cut off or is damaged")
    return FileArray(data, dtype, (count,), start)


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: the file was cut off or is damaged; copy it again")


class _Table:
    """A flatbuffers table: fields by number, absent ones are 0."""

    def __init__(self, data: Any, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        self._num_bytes = struct.unpack_from("<H", data, self._fields)[0]

    @classmethod
    def root(cls, data: Any, at: int) -> _Table:
        return cls(data, at + struct.unpack_from("<I", data, at)[0])

    def has(self, field: int) -> bool:
        return self._place(field) != 0

    def number(self, field: int, form: str) -> int:
        place = self._place(field)
        return struct.unpack_from("<" + form, self._data, place)[0] if place else 0

    def table(self, field: int) -> _Table:
        return _Table(self._data, self._target(field))

    def tables(self, field: int) -> list[_Table]:
        start, count = self._vector(field)
        return [_Table.root(self._data, start + 4 * number) for number in range(count)]

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64."""
        start, count = self._vector(field)
        return [struct.unpack_from("<qq", self._data, start + 16 * number) for number in range(count)]

    def text(self, field: int) -> str:
        start, count = self._vector(field)
        return bytes(self._data[start : start + count]).decode()

    def _vector(self, field: int) -> tuple[int, int]:
        """Where the first item is, and how many there are."""
        if not self.has(field):
            return 0, 0
        target = self._target(field)
        return target + 4, struct.unpack_from("<I", self._data, target)[0]

    def _target(self, field: int) -> int:
        place = self._place(field)
        if not place:
            raise IndexError(field)
        return place + struct.unpack_from("<I", self._data, place)[0]

    def _place(self, field: int) -> int:
        """Where a field is, 0 when it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._num_bytes:
            return 0
        offset = struct.unpack_from("<H", self._data, self._fields + entry)[0]
        return self._at + offset if offset else 0
