"""What Parquet and Arrow files declare of what they unpack to, read before anything is unpacked.

Parquet: the header of every page (Thrift's compact protocol; parquet.thrift, PageHeader). Arrow: the length before each
packed buffer of a record batch (Flatbuffers; Message.fbs, RecordBatch and BodyCompression). pyarrow allocates what they
say, whatever a footer says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import DataError
from hanlin.data.file_array import FileBytes

if TYPE_CHECKING:
    import pyarrow

__all__ = ["check_messages", "check_pages", "expanded_bytes"]

MOST_PAGE_BYTES = 1 << 27
"""Unpacked; writers make pages of a megabyte, or (DuckDB) of a hundred."""

_HEADER_BYTES = 1 << 12  # of a page; with long statistics it is read again
_MOST_HEADER_BYTES = 1 << 24
_DICTIONARY = 2
_BATCH, _DICTIONARY_BATCH = 3, 2  # of MessageHeader
_CONTINUED = 0xFFFFFFFF
_SMALLEST_BATCH, _MAX_RATIO = 1 << 28, 50  # as in packed.py


def check_pages(data: FileBytes, chunk: Any) -> int:
    """The size of the dictionary of a column chunk, unpacked (0: it has none); all its pages are looked at.

    chunk: pyarrow's ColumnChunkMetaData.
    Raises: DataError for a page that is larger than any; ValueError, IndexError for headers that are none.
    """
    starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at is not None and at > 0]
    at, dictionary = min(starts), 0
    end = at + chunk.total_compressed_size
    while at < end:
        kind, unpacked, packed, header = _page(data, at)
        if max(unpacked, packed) > MOST_PAGE_BYTES:
            raise DataError(
                f"{data.path}: column {chunk.path_in_schema} has a page of {unpacked:,} bytes unpacked; at most "
                f"{MOST_PAGE_BYTES:,} are; write the file anew with pages of a usual size"
            )
        if kind == _DICTIONARY:
            dictionary = max(dictionary, unpacked)
        at += header + packed
    return dictionary


def _page(data: FileBytes, at: int) -> tuple[int, int, int, int]:
    """Kind, size unpacked, size packed, and size of the header."""
    size = _HEADER_BYTES
    while True:
        reader = _Compact(data[at : at + size])
        try:
            fields = reader.struct()
        except IndexError:
            if size >= _MOST_HEADER_BYTES or at + size >= len(data):
                raise ValueError(f"the header of the page at byte {at:,} has no end") from None
            size *= 16
            continue
        kind, unpacked, packed = (fields.get(number, -1) for number in (1, 2, 3))
        if min(kind, unpacked, packed) < 0:
            raise ValueError(f"no header of a page at byte {at:,}")
        return kind, unpacked, packed, reader.at


class _Compact:
    """Reads Thrift's compact protocol; of structs only whole numbers are kept."""

    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def struct(self, levels: int = 16) -> dict[int, int]:
        """Field -> number. Raises: IndexError where the bytes end before it does, ValueError."""
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            if (value := self._value(head & 15, levels)) is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, levels: int) -> int | None:
        if not levels:
            raise ValueError("a header is nested too deeply")
        match kind:
            case 1 | 2:  # a truth value is its kind
                return None
            case 3:
                self._skip(1)
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                self._skip(8)
            case 8:
                self._skip(self._varint())
            case 9 | 10:
                head = self._byte()
                count = self._varint() if head >> 4 == 15 else head >> 4
                for _ in range(count):
                    self._value(3 if head & 15 in (1, 2) else head & 15, levels - 1)
            case 12:
                self.struct(levels - 1)
            case _:
                raise ValueError(f"a header holds a field of the unknown kind {kind}")
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._content):
            raise IndexError(count)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a header holds a number without end")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


# --- Arrow ---


def check_messages(data: FileBytes, *, is_file: bool) -> None:
    """Look at all record batches of an IPC file or stream, with their dictionaries.

    Raises: DataError for one that stands for more than texts do; struct.error, ValueError for what is none.
    """
    for at in _in_footer(data) if is_file else _in_stream(data):
        metadata, body, _ = _message(data, at)
        packed, unpacked = _batch_bytes(data, metadata, body)
        if unpacked > max(_SMALLEST_BATCH, _MAX_RATIO * packed):
            raise DataError(
                f"{data.path}: a record batch of {packed:,} bytes unpacks to {unpacked:,}, more than {_MAX_RATIO} "
                "times its size, as no texts do"
            )


def _in_stream(data: FileBytes) -> Iterator[int]:
    at = 0
    while at + 8 <= len(data):
        metadata, body, size = _message(data, at)
        if not len(metadata):
            return
        yield at
        at = body + size


def _in_footer(data: FileBytes) -> Iterator[int]:
    """Where its footer says that dictionaries and record batches lie."""
    size = struct.unpack("<i", data[-10:-6])[0]
    footer = _root(data[len(data) - 10 - size : -10])
    for field in (2, 3):
        yield from (start for start, _, _ in footer.structs(field, "<qi4xq"))


def _message(data: FileBytes, at: int) -> tuple[bytes, int, int]:
    """Its metadata, where its body begins, and the size of that."""
    mark, size = struct.unpack("<Ii", data[at : at + 8])
    start = at + 8
    if mark != _CONTINUED:  # before Arrow 0.15
        start, size = at + 4, mark
    metadata = data[start : start + max(size, 0)]
    return metadata, start + max(size, 0), max(_root(metadata).number(3, "<q"), 0) if metadata else 0


def _batch_bytes(data: FileBytes, metadata: bytes, body: int) -> tuple[int, int]:
    """The buffers of a message as they lie there, and unpacked, as they declare it."""
    root = _root(metadata)
    kind, header = root.number(1, "<B"), root.table(2)
    if kind == _DICTIONARY_BATCH and header is not None:
        header = header.table(1)
    if header is None or kind not in (_BATCH, _DICTIONARY_BATCH):
        return 0, 0
    buffers = list(header.structs(2, "<qq"))
    packed = sum(max(length, 0) for _, length in buffers)
    if header.table(3) is None:
        return packed, packed
    heads = [data[body + start : body + start + 8] for start, length in buffers if length >= 8 and start >= 0]
    declared = [struct.unpack("<q", head)[0] for head in heads if len(head) == 8]
    return packed, packed + sum(size for size in declared if size > 0)  # -1: a buffer that is not packed


def _root(content: bytes) -> _Table:
    return _Table(content, struct.unpack_from("<I", content)[0])


class _Table:
    """A table of Flatbuffers."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._fields = at - struct.unpack_from("<i", content, at)[0]
        if self._fields < 0:
            raise ValueError("the metadata lead out of themselves")

    def number(self, field: int, form: str) -> int:
        place = self._place(field)
        return struct.unpack_from(form, self._content, place)[0] if place else 0

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return _Table(self._content, place + self._at_place(place)) if place else None

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """Those of a vector."""
        if place := self._place(field):
            start = place + self._at_place(place)
            for number in range(self._at_place(start)):
                yield struct.unpack_from(form, self._content, start + 4 + struct.calcsize(form) * number)

    def _place(self, field: int) -> int:
        """Where a field lies; 0: it is not there."""
        size, entry = struct.unpack_from("<H", self._content, self._fields)[0], 4 + 2 * field
        offset = struct.unpack_from("<H", self._content, self._fields + entry)[0] if entry < size else 0
        return self._at + offset if offset else 0

    def _at_place(self, place: int) -> int:
        return struct.unpack_from("<I", self._content, place)[0]


# --- values that stand in a dictionary ---


def expanded_bytes(batch: pyarrow.RecordBatch) -> int:
    """The bytes of a batch with each text written out where it stands, in place of its number in a dictionary."""
    return sum(map(_expanded, batch.columns))


def _expanded(column: pyarrow.Array) -> int:
    from pyarrow import compute, types

    functions: Any = compute  # they are made when it is imported
    kind = column.type
    if types.is_dictionary(kind):
        if not (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
            return column.indices.nbytes
        lengths = functions.binary_length(column.dictionary).take(column.indices)
        return column.indices.nbytes + (functions.sum(lengths).as_py() or 0)
    if types.is_struct(kind):
        return sum(map(_expanded, column.flatten()))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return len(column) + _expanded(column.flatten())
    return column.nbytes
