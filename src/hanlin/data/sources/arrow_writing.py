"""Writes what `arrow.py` reads: a folder of the `datasets` library's save_to_disk, with columns of lists of int64.

Layout: https://arrow.apache.org/docs/format/Columnar.html (IPC streaming format); its message heads are flatbuffers,
which are built here of blobs: bytes of a multiple of 8, and the place in them that an offset to the blob points at.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.files import published, write_json
from hanlin.data.sources.arrow import STATE
from hanlin.data.sources.arrow_stream import CONTINUES, INTEGER, LIST, RECORD_BATCH, SCHEMA

__all__ = ["write_arrow"]

Row = Mapping[str, Sequence[int]]
_Blob = tuple[bytes, int]
_Field = tuple[str, int] | _Blob | None
"""Of a flatbuffers table: a number in the form of `struct`, a blob, or nothing."""

_BATCH_ROWS, _FILE_BYTES = 1000, 500 << 20
_VERSION = 4  # of the messages: V5
_INFO = "dataset_info.json"


def write_arrow(folder: Path, rows: Iterable[Row]) -> int:
    """Write rows of equal keys as a new folder, which appears whole or not at all. Returns the number of rows.

    Raises: CheckpointError when the folder is there already, DataError when there are no rows.
    """
    batches, count, files = _batches(iter(rows)), 0, 0
    with published(folder) as private:
        private.mkdir()
        batch = next(batches, None)
        if batch is None:
            raise DataError(f"{folder}: there are no rows to write")
        names = list(batch[0])
        while batch is not None:
            with (private / f"{files}.arrow").open("xb") as stream:
                _write_message(stream, SCHEMA, _schema(names), b"")
                size = stream.tell() + _FILE_BYTES
                while batch is not None and stream.tell() < size:
                    _write_batch(stream, names, batch)
                    count += len(batch)
                    batch = next(batches, None)
                stream.write(struct.pack("<II", CONTINUES, 0))
            files += 1
        _name_files(private, files, names)
    return count


def _name_files(folder: Path, count: int, names: Sequence[str]) -> None:
    """Give the files their names, which hold their number, and write what the library wants to know beside them."""
    listed, digest = [], hashlib.sha256()
    for number in range(count):
        name = f"data-{number:05d}-of-{count:05d}.arrow"
        (folder / f"{number}.arrow").rename(folder / name)
        listed.append({"filename": name})
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    value = {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "Sequence"}
    about = {"citation": "", "description": "", "homepage": "", "license": ""}
    write_json(folder / _INFO, {**about, "features": dict.fromkeys(names, value)})
    state = {
        "_data_files": listed,
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
    }
    write_json(folder / STATE, {**state, "_format_type": None, "_output_all_columns": False, "_split": None})


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _schema(names: Sequence[str]) -> _Blob:
    """Of columns of lists of int64."""
    item = _table([_text("item"), ("B", 1), ("B", INTEGER), _table([("i", 64), ("B", 1)]), None, _vector([])])
    columns = [_table([_text(name), ("B", 1), ("B", LIST), _table([]), None, _vector([item])]) for name in names]
    return _table([("h", 0), _vector(columns)])


def _write_batch(stream: IO[bytes], names: Sequence[str], rows: Sequence[Row]) -> None:
    body, nodes, buffers = bytearray(), [], []
    for name in names:
        bounds = np.cumsum([0, *(len(row[name]) for row in rows)]).astype("<i4")
        values = np.concatenate([np.asarray(row[name], "<i8") for row in rows])
        nodes += [(len(rows), 0), (len(values), 0)]
        for data in (b"", bounds.tobytes(), b"", values.tobytes()):  # an empty bit map: nothing is missing
            buffers.append((len(body), len(data)))
            body += _padded(data)
    _write_message(stream, RECORD_BATCH, _table([("q", len(rows)), _pairs(nodes), _pairs(buffers)]), bytes(body))


def _write_message(stream: IO[bytes], kind: int, head: _Blob, body: bytes) -> None:
    message, entry = _table([("h", _VERSION), ("B", kind), head, ("q", len(body))])
    stream.write(struct.pack("<IiII", CONTINUES, 8 + len(message), 8 + entry, 0) + message + body)


def _table(fields: Sequence[_Field]) -> _Blob:
    """A table behind the list of its fields' places, and what its offsets point at behind both."""
    places, size = [], 4
    for field in fields:
        width = 0 if field is None else 4 if isinstance(field[0], bytes) else struct.calcsize(field[0])
        size += -size % max(width, 1)
        places.append(size if width else 0)
        size += width
    listed = struct.pack(f"<HH{len(places)}H", 4 + 2 * len(places), size, *places)
    start = len(_padded(listed))
    blob = bytearray(_padded(_padded(listed) + struct.pack("<i", start) + bytes(size - 4)))
    for field, place in zip(fields, places, strict=True):
        match field:
            case (str(form), int(value)):
                struct.pack_into(f"<{form}", blob, start + place, value)
            case (bytes(child), int(entry)):
                struct.pack_into("<I", blob, start + place, len(blob) + entry - start - place)
                blob += child
    return bytes(blob), start


def _vector(items: Sequence[_Blob]) -> _Blob:
    """A vector of tables."""
    blob = bytearray(_padded(struct.pack("<I", len(items)) + bytes(4 * len(items))))
    for number, (child, entry) in enumerate(items):
        place = 4 + 4 * number
        struct.pack_into("<I", blob, place, len(blob) + entry - place)
        blob += child
    return bytes(blob), 0


def _pairs(items: Sequence[tuple[int, int]]) -> _Blob:
    """A vector of structs of two int64, which begin at a multiple of 8."""
    return bytes(4) + struct.pack("<I", len(items)) + b"".join(struct.pack("<qq", *pair) for pair in items), 4


def _text(text: str) -> _Blob:
    data = text.encode()
    return _padded(struct.pack("<I", len(data)) + data + b"\0"), 0


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
