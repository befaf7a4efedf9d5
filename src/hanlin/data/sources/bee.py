"""The binary data set of the original CPM-Bee: a folder with `meta.bin` and data files made of whole blocks.

`meta.bin` is text, one JSON object a line per data file; the blocks of all files are numbered through. A record in a
block is 0x1F, its size (uint32, little endian) and the payload; 0x00 ends the block. The payload is JSON, a pickle or
raw bytes and is not marked: it is recognised by its content. Pickles are read by an unpickler that knows plain values
only, so a data set cannot run code.

`BeeSource` gives random access; `BeeReader` reads in the order of the original (blocks dealt to ranks, taken from the
end of the list) with its resume state.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import pickle
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hanlin.core.errors import DataError
from hanlin.data.files import replaced_file
from hanlin.data.sources.jsonl import parse_row
from hanlin.data.sources.source import BadRowError

META = "meta.bin"
BLOCK_BYTES = 16 << 20  # the original's default
MARKER, BLOCK_END = 0x1F, 0x00
HEAD = struct.Struct("<BI")
PROTOCOL = 4  # what Python 3.8+ wrote by default, the age of the original

Payload = Literal["json", "pickle", "raw"]


@dataclass(frozen=True)
class BeeFile:
    """One line of `meta.bin`, in its words. nbytes: 4 + payload over all rows; mask: the file is to be skipped."""

    file_name: str
    block_begin: int
    block_end: int
    nbytes: int
    nlines: int
    mask: bool = False
    block_size: int = BLOCK_BYTES

    @property
    def num_blocks(self) -> int:
        return self.block_end - self.block_begin


# --- the list of files ---


def read_meta(folder: Path) -> list[BeeFile]:
    """The data files of a data set; none when there is no `meta.bin`.

    Raises: DataError.
    """
    path = folder / META
    if not path.exists():
        return []
    files = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            files.append(_parse_meta_line(line, f"{path}:{number}"))
    end = 0
    for file in files:
        if file.block_begin != end:
            raise DataError(f"{path}: {file.file_name} begins at block {file.block_begin}, expected {end}")
        end = file.block_end
    return files


def write_meta(folder: Path, files: Sequence[BeeFile]) -> None:
    with replaced_file(folder / META) as stream:
        for file in files:
            stream.write(json.dumps(asdict(file)).encode() + b"\n")


def _parse_meta_line(line: bytes, where: str) -> BeeFile:
    try:
        values = parse_row(line)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    names = {field.name for field in fields(BeeFile)}
    if set(values) - names or names - set(values) - {"mask", "block_size"}:
        raise DataError(f"{where}: expected the keys {', '.join(sorted(names))}; found {', '.join(sorted(values))}")
    numbers = [values[name] for name in names & set(values) - {"file_name", "mask"}]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(values["file_name"], str):
        raise DataError(f"{where}: file_name must be a string and the counts whole numbers")
    file = BeeFile(**values)
    if file.num_blocks < 0 or file.block_size <= HEAD.size or Path(file.file_name).name != file.file_name:
        raise DataError(f"{where}: impossible blocks, block size or file name")
    return file


# --- payloads ---


def read_payload(payload: bytes) -> Any:
    """The value of a payload, recognised by its content; bytes when it is neither JSON nor a pickle.

    Raises: ValueError with the reason.
    """
    if payload[:1] == b"\x80":
        return _unpickle(payload)
    if payload[:1] == b"{":
        return parse_row(payload)
    if payload[-1:] == b".":  # the oldest pickles have no mark of their own
        try:
            return _unpickle(payload)
        except _BrokenPickleError:
            return payload
    return payload


def write_payload(value: Any, form: Payload, protocol: int = PROTOCOL) -> bytes:
    if form == "pickle":
        return pickle.dumps(value, protocol=protocol)
    if form == "json":
        return json.dumps(value, ensure_ascii=False).encode()
    return bytes(value)


class _BrokenPickleError(ValueError):
    """Bytes that are no pickle at all."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"refused: the pickle asks for {module}.{name}; only plain values are read, code is never run")

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("refused: the pickle asks for an outside object; only plain values are read")


# What the unpickler raises on damaged bytes.
_BROKEN = (
    pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError,
    UnicodeDecodeError,
)  # fmt: skip


def _unpickle(payload: bytes) -> Any:
    stream = BytesIO(payload)
    try:
        value = _PlainUnpickler(stream).load()
    except _BROKEN as error:
        raise _BrokenPickleError(f"the pickle is damaged ({error})") from None
    except ValueError as error:
        if str(error).startswith("refused"):
            raise
        raise _BrokenPickleError(f"the pickle is damaged ({error})") from None
    if stream.tell() != len(payload):
        raise _BrokenPickleError(f"the pickle is damaged ({len(payload) - stream.tell()} bytes follow its end)")
    _refuse_odd_values(value, len(payload))
    return value


def _refuse_odd_values(value: Any, limit: int) -> None:
    """Walk a value; `limit`: more values than bytes means that it contains itself."""
    waiting, count = [value], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > limit:
            raise ValueError("refused: the pickled value contains itself")
        if type(value) is dict:
            odd = [key for key in value if type(key) is not str]
            if odd:
                raise ValueError(f"refused: the key {odd[0]!r} is no string")
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"refused: a value of type {type(value).__name__}; only plain values are read")


# --- random access ---


class BeeSource:
    """The rows of all files that are not masked, file after file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files = [file for file in read_meta(folder) if not file.mask]
        self._maps = [_map_file(folder, file) for file in self._files]
        places = [_find_records(folder, file, data) for file, data in zip(self._files, self._maps, strict=True)]
        self._bounds = np.cumsum([0, *(len(found) for found in places)])
        self._places = np.concatenate([np.zeros((0, 2), np.int64), *places])
        if len(self) == 0:
            raise DataError(f"{folder}: the data set holds no rows")

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file, data in zip(self._files, self._maps, strict=True):
            digest.update(json.dumps(asdict(file)).encode())
            digest.update(data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, size = (int(value) for value in self._places[row])
        try:
            record = read_payload(self._maps[self._file_of(row)][start : start + size])
        except ValueError as error:
            raise BadRowError(self.where(row), str(error)) from None
        if not isinstance(record, dict):
            raise BadRowError(self.where(row), f"expected a dict, found {type(record).__name__}")
        return record

    def where(self, row: int) -> str:
        number = self._file_of(row)
        file, start = self._files[number], int(self._places[row, 0]) - HEAD.size
        place = f"block {file.block_begin + start // file.block_size}, offset {start % file.block_size}"
        return f"{self.path / file.file_name}:{row - self._bounds[number] + 1} ({place})"

    def _file_of(self, row: int) -> int:
        return int(np.searchsorted(self._bounds, row, side="right")) - 1


def _map_file(folder: Path, file: BeeFile) -> Any:
    path = folder / file.file_name
    if not path.is_file():
        raise DataError(f"{path}: {META} lists this file, but it is missing; restore it, or use `compact_bee`")
    size, expected = path.stat().st_size, file.num_blocks * file.block_size
    if size < expected:
        raise DataError(
            f"{path}: cut off in block {file.block_begin + size // file.block_size} at offset "
            f"{size % file.block_size}: {size:,} bytes, {META} says {expected:,}; copy it again"
        )
    if expected == 0:
        return b""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), expected, access=mmap.ACCESS_READ)


def _find_records(folder: Path, file: BeeFile, data: Any) -> np.ndarray:
    """`[rows, 2]`: where each payload starts in the file, and its size."""
    found = []
    for block in range(file.num_blocks):
        base = block * file.block_size
        for start, size in _records(data[base : base + file.block_size], f"{folder / file.file_name}", file, block):
            found.append((base + start, size))
    if len(found) != file.nlines:
        raise DataError(f"{folder / file.file_name}: {len(found)} rows, {META} says {file.nlines}; the file is damaged")
    return np.array(found, np.int64).reshape(-1, 2)


def _records(block: bytes, path: str, file: BeeFile, number: int, offset: int = 0) -> Iterator[tuple[int, int]]:
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


# --- the original's reading order ---


class BeeReader:
    """Rows in the order of the original program, for one rank, with its resume state.

    # kept: blocks are taken from the END of the list, so without shuffling the last block comes first (bee_dataset).

    shuffle: the generator that shuffles the list of blocks, None leaves it; repeats: passes over the data, None: no
        end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: random.Random | None = None,
        repeats: int | None = 1,
    ) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._shuffle, self._repeats = shuffle, repeats
        self._files = [file for file in read_meta(folder) if not file.mask]
        self._unread: list[int] = []
        self._passes = 0
        self._block: int | None = None
        self._offset = 0

    def __iter__(self) -> Iterator[Any]:
        while self._open_block():
            assert self._block is not None
            file = self._file_of(self._block)
            number = self._block - file.block_begin
            block = _map_file(self._folder, file)[number * file.block_size : (number + 1) * file.block_size]
            path = f"{self._folder / file.file_name}"
            for start, size in _records(block, path, file, number, self._offset):
                self._offset = start + size
                try:
                    value = read_payload(block[start : start + size])
                except ValueError as error:
                    raise BadRowError(f"{path}: block {self._block}, offset {start - HEAD.size}", str(error)) from None
                yield value
            self._block = None

    def state_dict(self) -> dict[str, Any]:
        """In the words of the original, for this rank: unread blocks, and [block or -1, offset, unread, passes]."""
        block = -1 if self._block is None else self._block
        offset = 0 if self._block is None else self._offset
        return {"states": list(self._unread), "block": [block, offset, len(self._unread), self._passes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        block, offset, num_unread, self._passes = state["block"]
        self._unread = list(state["states"][:num_unread])
        self._block, self._offset = (None, 0) if block < 0 else (block, offset)

    def _open_block(self) -> bool:
        if self._block is not None:
            return True
        if not self._unread and not self._start_pass():
            return False
        self._block, self._offset = self._unread.pop(), 0
        return True

    def _start_pass(self) -> bool:
        if self._repeats is not None and self._passes >= self._repeats:
            return False
        blocks = [block for file in self._files for block in range(file.block_begin, file.block_end)]
        self._unread = [block for block in blocks if block % self._world == self._rank]
        if not self._unread:
            raise DataError(f"{self._folder}: {len(blocks)} blocks, none for rank {self._rank} of {self._world}")
        if self._shuffle is not None:
            self._shuffle.shuffle(self._unread)
        self._passes += 1
        return True

    def _file_of(self, block: int) -> BeeFile:
        return next(file for file in self._files if file.block_begin <= block < file.block_end)


# --- writing ---


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


# --- whole data sets ---


def shuffle_bee(source: Path, target: Path, name: str, *, seed: int, block_bytes: int | None = None) -> BeeFile:
    """Write the rows of a data set in random order, as one file `name` of another data set."""
    rows = BeeSource(source)
    order = np.random.default_rng(seed).permutation(len(rows))
    return write_bee(target, name, (rows[row] for row in order), block_bytes=block_bytes, form="pickle")


def mask_bee(folder: Path, name: str, *, masked: bool = True) -> None:
    """Leave a file of the data set out of reading, or take it in again."""
    files = read_meta(folder)
    if not any(file.file_name == name for file in files):
        raise DataError(
            f"{folder}: no file {name!r}; there are: {', '.join(file.file_name for file in files) or 'none'}"
        )
    write_meta(folder, [replace(file, mask=masked) if file.file_name == name else file for file in files])


def compact_bee(folder: Path) -> list[str]:
    """Drop the entries of files that were deleted; returns their names."""
    files = read_meta(folder)
    kept = [file for file in files if (folder / file.file_name).is_file()]
    write_meta(folder, _renumber(kept))
    return [file.file_name for file in files if file not in kept]


def merge_bee(target: Path, source: Path) -> list[str]:
    """Copy the files of one data set into another; a taken name gets `_0`, `_1`, ...; returns the names."""
    files, names = read_meta(target), []
    for file in read_meta(source):
        name = _free_name(target, file.file_name, files)
        with replaced_file(target / name) as stream:
            stream.write(_map_file(source, file))
        files = _renumber([*files, replace(file, file_name=name)])
        write_meta(target, files)
        names.append(name)
    return names


def _free_name(folder: Path, name: str, files: Sequence[BeeFile]) -> str:
    taken = {file.file_name for file in files}
    candidates = [name, *(f"{name}_{number}" for number in range(len(files) + 1))]
    return next(found for found in candidates if found not in taken and not (folder / found).exists())


def _renumber(files: Sequence[BeeFile]) -> list[BeeFile]:
    begin, numbered = 0, []
    for file in files:
        numbered.append(replace(file, block_begin=begin, block_end=begin + file.num_blocks))
        begin = numbered[-1].block_end
    return numbered
