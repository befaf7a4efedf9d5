"""Parquet and Arrow files (IPC files and streams, compressed or not), read by pyarrow: a row is a dict of JSON values.

Read are texts, numbers, truth values, lists, structs and maps of these, dictionary-encoded or not; dates, times and
decimals become texts, bytes are taken for UTF-8. A key without a value (null) is left out of a row, as it would be in
JSON. Anything else in a row makes it a bad one.

Rows are read from the first one on, 64 at a time. Held in memory are the last 1024 of them, or 64 MB; of Parquet some
pages, of Arrow the record batch that the row lies in. Whoever goes back further begins anew, some times; then, as for
samples that are encoded anew in each epoch, the rows are written once into a temporary file, as JSON, and read from
there. Nothing is mapped.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import struct
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import DamagedFileError, DataError, shorten
from hanlin.core.json_text import MOST_LEVELS
from hanlin.data.file_array import FileBytes, ScratchFile
from hanlin.data.sources.column_sizes import check_messages, check_pages, expanded_bytes
from hanlin.data.sources.jsonl import MAX_LINE_BYTES
from hanlin.data.sources.records import BadRowError

if TYPE_CHECKING:
    import pyarrow

PARQUET, ARROW, FEATHER = b"PAR1", b"ARROW1", b"FEA1"
STREAM = b"\xff\xff\xff\xff"  # a stream has no name of its own: it begins with the mark of a message
log = logging.getLogger(__name__)

ENDINGS = (".parquet", ".arrow", ".feather")

_STREAM_END = bytes(4)
_WINDOW_ROWS, _HELD_WINDOWS, _HELD_BYTES = 64, 16, 1 << 26
_UNPACKED_BYTES = 1 << 27  # of rows that are made at once
_MOST_PASSES = 3  # as much as that is read again before rows are kept
_BUFFER_BYTES = 1 << 20
_MOST_ROWS_A_BYTE = 64  # of a file; more is what no rows of texts are
_MAX_RATIO, _SMALLEST_LIMIT = 1000, 1 << 28  # as in packed.py; columns of equal texts are packed much better
_TOO_MUCH = f"more than {_MAX_RATIO:,} times its size, as no texts do"

Row = dict[str, Any] | str
"""What a row holds, or why it cannot be used."""


def need_pyarrow(path: Path) -> Any:
    """The package, imported when it is needed.

    Raises: DataError that says how to install it.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet and Arrow need pyarrow; pip install 'hanlin[arrow]'") from None
    return pyarrow


def is_columns(head: bytes) -> bool:
    """Whether a file that begins so is one of these kinds."""
    return head.startswith((PARQUET, ARROW, FEATHER, STREAM))


class ColumnSource:
    """The rows of one file."""

    def __init__(self, path: Path, only: str | None = None) -> None:
        """only: the one column that is read, in place of all.

        Raises: DataError.
        """
        self.path = path
        self._bytes = FileBytes(path)
        reader = _ParquetReader if self._bytes[:4] == PARQUET else _ArrowReader
        with _naming(path):
            self._table = reader(need_pyarrow(path), self._bytes, only)
        _check_columns(path, self._table.names, only)
        if len(self) == 0:
            raise DataError(f"{path}: the file holds no rows")
        if len(self) > _MOST_ROWS_A_BYTE * len(self._bytes):
            raise DataError(f"{path}: declares {len(self):,} rows, more than {len(self._bytes):,} bytes can hold")
        self._most_bytes = max(_SMALLEST_LIMIT, _MAX_RATIO * len(self._bytes))
        if self._table.num_bytes > self._most_bytes:
            raise DataError(f"{path}: unpacks to {self._table.num_bytes:,} bytes, {_TOO_MUCH}")
        self._pass, self._num_read = _Pass(self._read()), 0
        self._kept: _KeptRows | None = None
        self._damage: DamagedFileError | None = None
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._bytes.sha256

    @property
    def kind(self) -> str:
        return self._table.kind

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Raises: BadRowError; DamagedFileError where nothing more can be read."""
        with self._lock:
            found = self._find(row)
        if isinstance(found, str):
            raise BadRowError(self.where(row), found)
        return found

    def where(self, row: int) -> str:
        return f"{self.path}: row {row + 1}"

    def _find(self, row: int) -> Row:
        if self._damage is not None:
            raise self._damage
        try:
            self._bytes.check_unwritten()  # what is held would still be right, and the next rows another file's
            return self._reach(row)
        except DataError as error:
            self._damage = DamagedFileError(str(error))
            raise self._damage from None

    def _reach(self, row: int) -> Row:
        if self._kept is None and row < self._pass.first:
            self._num_read += self._pass.end
            if self._num_read > _MOST_PASSES * len(self):
                self._kept = _KeptRows(self.path, self._read(), self._most_bytes)
            self._pass = _Pass(self._read())
        return self._pass[row] if self._kept is None else self._kept[row]

    def _read(self) -> Iterator[_Window]:
        """All rows, some at a time.

        Raises: DataError also where they end before they should.
        """
        count = num_bytes = 0
        with _naming(self.path):
            for batch in self._table.batches():
                for part, size in _parts(batch):
                    count, num_bytes = count + part.num_rows, num_bytes + size
                    if num_bytes > self._most_bytes:
                        raise DataError(f"{self.path}: unpacks to more than {self._most_bytes:,} bytes, {_TOO_MUCH}")
                    yield _Window(_rows_of_usual_size(part, size), size)
        raise DataError(f"{self.path}: declares {len(self):,} rows and holds {count:,}; it is damaged, copy it again")


@dataclass(frozen=True)
class _Window:
    rows: list[Row]
    num_bytes: int


class _Pass:
    """Rows that are read one after the other; the last ones, from `first` to `end`, are held."""

    def __init__(self, windows: Iterator[_Window]) -> None:
        self._windows, self._held, self._num_bytes = windows, deque[_Window](), 0
        self.first, self.end = 0, 0

    def __getitem__(self, row: int) -> Row:
        while row >= self.end:
            self._take(next(self._windows))
        place = row - self.first
        for window in self._held:
            if place < len(window.rows):
                return window.rows[place]
            place -= len(window.rows)
        raise AssertionError((row, self.first, self.end))

    def _take(self, window: _Window) -> None:
        self._held.append(window)
        self.end += len(window.rows)
        self._num_bytes += window.num_bytes
        while len(self._held) > 1 and (len(self._held) > _HELD_WINDOWS or self._num_bytes > _HELD_BYTES):
            gone = self._held.popleft()
            self.first += len(gone.rows)
            self._num_bytes -= gone.num_bytes


class _KeptRows:
    """Rows that were read, in a temporary file; they are read as far as they are asked for."""

    def __init__(self, path: Path, windows: Iterator[_Window], most_bytes: int) -> None:
        self._path, self._windows, self._most_bytes = path, windows, most_bytes
        self._file, self._starts = ScratchFile(path), array("q", [0])

    def __getitem__(self, row: int) -> Row:
        while row >= len(self._starts) - 1:
            rows = [json.dumps(one, ensure_ascii=False).encode() for one in next(self._windows).rows]
            self._starts.extend(itertools.accumulate(map(len, rows), initial=self._starts.pop()))
            self._file.append(b"".join(rows))
            if self._file.size > self._most_bytes:
                raise DataError(f"{self._path}: unpacks to more than {self._most_bytes:,} bytes, {_TOO_MUCH}")
        return json.loads(self._file.read()[self._starts[row] : self._starts[row + 1]])


# --- the files ---


class _ParquetReader:
    kind = "Parquet"

    def __init__(self, arrow: Any, data: FileBytes, only: str | None) -> None:
        self._file = arrow.parquet.ParquetFile(
            arrow.PythonFile(_Stream(data), mode="r"),
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        self._columns = [only] if only is not None else None
        self.names = self._file.schema_arrow.names
        about = self._file.metadata
        groups = [about.row_group(group) for group in range(about.num_row_groups)]
        self.num_rows = about.num_rows
        self.num_bytes = sum(group.total_byte_size for group in groups)
        self._rows_at_once = [_rows_at_once(data, group, only) for group in groups]

    def batches(self) -> Iterator[pyarrow.RecordBatch]:
        for group in range(self._file.num_row_groups):
            yield from self._file.iter_batches(
                self._rows_at_once[group], row_groups=[group], columns=self._columns, use_threads=False
            )


def _rows_at_once(data: FileBytes, group: Any, only: str | None) -> int:
    """How many rows of a row group may be unpacked at once: each value may be all of its column's dictionary, again.

    Raises: DataError for pages that are larger than any.
    """
    largest = 1  # of a row
    for chunk in (group.column(number) for number in range(group.num_columns)):
        if only is None or f"{chunk.path_in_schema}.".startswith(f"{only}."):
            values_a_row = -(-chunk.num_values // max(group.num_rows, 1))
            largest += check_pages(data, chunk) * values_a_row
    return max(min(_WINDOW_ROWS, 2 * _UNPACKED_BYTES // largest), 1)


class _ArrowReader:
    """An IPC file or a stream; its rows are counted by reading one column of it."""

    def __init__(self, arrow: Any, data: FileBytes, only: str | None) -> None:
        self._arrow, self._data, self._only = arrow, data, only
        self._is_file = data[: len(ARROW)] == ARROW
        check_messages(data, is_file=self._is_file)
        self.kind = "Arrow file" if self._is_file else "Arrow stream"
        self.names = self._open(None).schema.names
        self.num_rows = sum(batch.num_rows for batch in self._read([0])) if self.names else 0
        self.num_bytes = len(data)
        if not self._is_file and not data[-8:].endswith(_STREAM_END):
            log.warning("%s: the Arrow stream has no mark of its end; it may have been cut off", data.path)

    def batches(self) -> Iterator[pyarrow.RecordBatch]:
        fields = None if self._only is None else [self.names.index(self._only)]
        for batch in self._read(fields):
            _validate(self._arrow, batch)
            yield batch

    def _read(self, fields: Sequence[int] | None) -> Iterator[pyarrow.RecordBatch]:
        reader = self._open(fields)
        if self._is_file:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from reader

    def _open(self, fields: Sequence[int] | None) -> Any:
        options = self._arrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        stream = self._arrow.PythonFile(_Stream(self._data), mode="r")
        if self._is_file:
            return self._arrow.ipc.open_file(stream, options=options)
        return self._arrow.ipc.open_stream(stream, options=options)


class _Stream(io.RawIOBase):
    """The bytes of a file as pyarrow reads them."""

    def __init__(self, data: FileBytes) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        rest = max(len(self._data) - self._at, 0)
        content = self._data.read(self._at, rest if size < 0 else min(size, rest))
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What pyarrow says of a file that it cannot read, as a DataError that names it."""
    arrow = need_pyarrow(path)
    try:
        yield
    except MemoryError:
        raise DataError(f"{path}: asks for more memory than there is; the file is damaged, copy it again") from None
    except arrow.ArrowNotImplementedError as error:
        raise DataError(f"{path}: pyarrow does not read it: {_first_line(error)}; write it anew") from None
    except (arrow.ArrowException, OSError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise DataError(
            f"{path}: the file was cut off or is damaged, or no Parquet or Arrow file ({_first_line(error)}); copy it "
            "again"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_columns(path: Path, names: Sequence[str], only: str | None) -> None:
    """Raises: DataError."""
    if not names:
        raise DataError(f"{path}: the file has no columns")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: two columns are named {twice!r}; rename one")
    check_column(path, names, only)


def check_column(path: Path, names: Sequence[str], only: str | None) -> None:
    """Raises: DataError when there is no such column; None: any."""
    if only is not None and only not in names:
        has = ", ".join(shorten(names, 20))
        raise DataError(f"{path}: there is no column {only!r} (it has: {has}); name the one with the text")


def _validate(arrow: Any, batch: pyarrow.RecordBatch) -> None:
    """Whether all values lie where they should; that texts are UTF-8 is found out row by row.

    Raises: ArrowInvalid.
    """
    as_bytes = {
        arrow.string(): arrow.binary(),
        arrow.large_string(): arrow.large_binary(),
        arrow.string_view(): arrow.binary_view(),
    }
    for column in batch.columns:
        column.validate()
        kind = as_bytes.get(column.type)
        (column if kind is None else column.view(kind)).validate(full=True)


# --- values ---


@dataclass(frozen=True)
class _Unusable:
    """A value that no record holds, and why."""

    reason: str


def _parts(batch: pyarrow.RecordBatch) -> Iterator[tuple[pyarrow.RecordBatch, int]]:
    """Some rows at a time, and the bytes that they stand for; one row alone where these are many."""
    start = 0
    while start < batch.num_rows:
        part = batch.slice(start, _WINDOW_ROWS)
        while (size := expanded_bytes(part)) > _UNPACKED_BYTES and part.num_rows > 1:
            part = part.slice(0, part.num_rows // 2)
        yield part, size
        start += part.num_rows


def _rows_of_usual_size(part: pyarrow.RecordBatch, size: int) -> list[Row]:
    """The rows of a part that stands for `size` bytes."""
    if part.num_rows == 1 and size > 2 * MAX_LINE_BYTES:
        return [f"a row of {size:,} bytes; at most {MAX_LINE_BYTES:,} make a record"]
    rows = _rows(part)
    return [_as_usual(row) for row in rows] if size > MAX_LINE_BYTES else rows


def _rows(batch: pyarrow.RecordBatch) -> list[Row]:
    columns = {name: _values(batch.column(place)) for place, name in enumerate(batch.schema.names)}
    return [_row({name: values[row] for name, values in columns.items()}) for row in range(batch.num_rows)]


def _row(values: dict[str, Any]) -> Row:
    for name, value in values.items():
        if isinstance(value, _Unusable):
            return f'"{name}": {value.reason}'
    return {name: value for name, value in values.items() if value is not None}


def _as_usual(row: Row) -> Row:
    """The row, unless it is larger than a line of JSON may be."""
    size = len(json.dumps(row, ensure_ascii=False).encode())
    return row if size <= MAX_LINE_BYTES else f"a row of {size:,} bytes; at most {MAX_LINE_BYTES:,} make a record"


def _values(column: pyarrow.Array) -> list[Any]:
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, TypeError, NotImplementedError):
        values = [_value(scalar) for scalar in column]
    if _is_map(column.type):  # which pyarrow gives as a list of pairs
        values = [{} if value == [] else value for value in values]
    return values if _is_plain(column.type) else [_clean(value) for value in values]


def _value(scalar: pyarrow.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _Unusable("holds bytes that are no UTF-8")
    except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
        return _Unusable(f"cannot be read ({scalar.type}): {_first_line(error)}")


def _is_plain(kind: pyarrow.DataType) -> bool:
    """Whether all values of a type are JSON's as they are."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    return types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)


def _is_map(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_map(kind)


def _clean(value: Any) -> Any:
    """The value as JSON has it, or why there is none."""
    try:
        return _as_json(value, MOST_LEVELS)
    except ValueError as error:
        return _Unusable(str(error))


def _as_json(value: Any, levels: int) -> Any:
    """Raises: ValueError."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if not isinstance(value, list | dict):
        return _single(value)
    if not levels:
        raise ValueError(f"nested too deeply; at most {MOST_LEVELS} levels are read")
    if isinstance(value, list) and not (value and isinstance(value[0], tuple)):
        return [_as_json(one, levels - 1) for one in value]
    found = {str(name): _as_json(one, levels - 1) for name, one in dict(value).items()}  # tuples: pairs of a map
    if len(found) < len(value):
        raise ValueError("a map holds a key twice; keep one of its values")
    return {name: one for name, one in found.items() if one is not None}


def _single(value: Any) -> str | float:
    """Raises: ValueError."""
    match value:
        case float():
            if not math.isfinite(value):
                raise ValueError("is NaN or without end (a missing number?), which JSON does not have")
            return value
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                what = f"holds {len(value):,} bytes that are no UTF-8 (a picture or sound?)"
                raise ValueError(f"{what}; write the file without the column") from None
        case date() | time():
            return value.isoformat()
        case Decimal() | timedelta():
            return str(value)
        case _Unusable():
            raise ValueError(value.reason)
    raise ValueError(f"is no text, number, list or object ({type(value).__name__}); write the file without the column")
