"""Megatron's indexed data: `<prefix>.bin`, the token ids of all items back to back, and `<prefix>.idx`, where they lie.

Two forms are read and written, to the byte: `mmap` (one size an item) and `cached`, which its original also calls lazy
(older; the same items, wider tables). Of either only what is asked for is read. See golden case cpm1_indexed_dataset.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file
from hanlin.core.os_errors import explain
from hanlin.data.file_array import FileArray, FileBytes
from hanlin.data.pretraining.corpus_checks import check_bytes, check_tables

IndexForm = Literal["mmap", "cached"]

MMAP_MAGIC, CACHED_MAGIC = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
VERSION = 1
# 6 is Python's float in the original, which numpy reads as 7.
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f8", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_MMAP_HEAD = struct.Struct("<9sQBQQ")  # magic, version, dtype code, items, document bounds
_CACHED_HEAD = struct.Struct("<8sQQQQQQ")  # magic, version, dtype code, element size, items, sizes, document bounds


def token_dtype(vocab_size: int | None) -> np.dtype:
    """What the original stores the ids of a vocabulary as; None: its size is not known."""
    return np.dtype("<u2" if vocab_size is not None and vocab_size < 65500 else "<i4")


@dataclass(frozen=True)
class Index:
    """What an .idx file says.

    sizes: tokens of each item; starts: its first token, in tokens from the beginning of the .bin file;
    documents: number of the first item of each document, and the number of items at the end.
    """

    form: IndexForm
    dtype: np.dtype
    sizes: np.ndarray
    starts: np.ndarray
    documents: np.ndarray


def read_index(path: Path) -> Index:
    """Raises: DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{explain(error, path, 'read')}; give the prefix of a .bin and an .idx file") from None
    try:
        if content.startswith((MMAP_MAGIC, CACHED_MAGIC)):
            index = _read_mmap(content) if content.startswith(MMAP_MAGIC) else _read_cached(content)
            check_tables(index)
            return index
    except (struct.error, ValueError, OverflowError) as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy it again or prepare the data anew") from None
    raise DataError(f"{path}: no index of Megatron's, it begins with {content[:9]!r}")


def _read_mmap(content: bytes) -> Index:
    _, version, code, items, bounds = _MMAP_HEAD.unpack_from(content)
    dtype = _dtype_of(version, code)
    tables = _Tables(content, _MMAP_HEAD.size)
    sizes, pointers, documents = tables.take("<i4", items), tables.take("<i8", items), tables.take("<i8", bounds)
    tables.end()
    if (pointers % dtype.itemsize).any():
        raise ValueError(f"an item is said to begin in the middle of an id of {dtype.itemsize} bytes, {dtype}")
    return Index("mmap", dtype, sizes, pointers // dtype.itemsize, documents)


def _read_cached(content: bytes) -> Index:
    _, version, code, element_bytes, items, num_sizes, bounds = _CACHED_HEAD.unpack_from(content)
    dtype = _dtype_of(version, code)
    if element_bytes != dtype.itemsize:
        raise ValueError(f"elements of {element_bytes} bytes are not of the dtype {dtype}")
    tables = _Tables(content, _CACHED_HEAD.size)
    places, offsets = tables.take("<i8", items + 1), tables.take("<i8", items + 1)
    dimensions, documents = tables.take("<i8", num_sizes), tables.take("<i8", bounds)
    tables.end()
    sizes = np.diff(offsets)
    if not np.array_equal(places, np.arange(items + 1)) or not np.array_equal(dimensions, sizes):
        raise ValueError("the sizes of the items contradict where they begin, or these are no lists of ids")
    return Index("cached", dtype, sizes, offsets[:-1], documents)


def _dtype_of(version: int, code: int) -> np.dtype:
    if version != VERSION:
        raise ValueError(f"version {version}, expected {VERSION}")
    if code not in _DTYPES:
        raise ValueError(f"dtype code {code}, expected one of {', '.join(map(str, _DTYPES))}")
    dtype = np.dtype(_DTYPES[code])
    if dtype.kind == "f":
        raise ValueError(f"the dtype is {dtype}, ids of tokens are whole numbers")
    return dtype


class _Tables:
    """Arrays that follow each other in a file."""

    def __init__(self, content: bytes, start: int) -> None:
        self._content, self._start = content, start

    def take(self, dtype: str, count: int) -> np.ndarray:
        table = np.frombuffer(self._content, dtype, count, self._start)
        self._start += table.nbytes
        return table

    def end(self) -> None:
        """Raises: ValueError when something follows."""
        if self._start != len(self._content):
            raise ValueError(f"{len(self._content) - self._start:,} bytes follow its tables")


class IndexedData:
    """Items by number, each an array of token ids; the .bin file is read as far as it is asked for."""

    def __init__(self, prefix: Path) -> None:
        """prefix: the path of both files without their endings.

        Raises: DataError.
        """
        self.prefix = Path(prefix)
        self.index = read_index(indexed_file(prefix, "idx"))
        path = indexed_file(self.prefix, "bin")
        if not path.is_file():
            raise DataError(f"{path}: is not there, but its .idx file is; copy both")
        content = FileBytes(path)
        check_bytes(path, len(content), self.index)
        self.tokens = FileArray(content, self.index.dtype, (len(content) // self.index.dtype.itemsize,))
        """The ids of all items, back to back."""

    def __len__(self) -> int:
        return len(self.index.sizes)

    def __getitem__(self, item: int) -> np.ndarray:
        return self.get(item)

    def get(self, item: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """The tokens of an item from `offset` on; length None: to its end."""
        start, size = int(self.index.starts[item]), int(self.index.sizes[item])
        end = size if length is None else offset + length
        assert 0 <= offset <= end <= size, (item, offset, length, size)
        return self.tokens[start + offset : start + end]

    @property
    def sizes(self) -> np.ndarray:
        return self.index.sizes

    @property
    def documents(self) -> np.ndarray:
        """As in the index; of one that knows no ends of documents each item is one."""
        known = self.index.documents
        return known if len(known) > 1 else np.arange(len(self) + 1)

    @property
    def files(self) -> list[Path]:
        return [indexed_file(self.prefix, ending) for ending in ("idx", "bin")]


class IndexedWriter:
    """Adds items to a .bin file; made by `written_index`."""

    def __init__(self, stream: IO[bytes], dtype: np.dtype) -> None:
        self.dtype = dtype
        self.sizes = array("q")
        self.documents = array("q", [0])
        self._stream = stream
        self._limits = (np.iinfo(dtype).min, np.iinfo(dtype).max)

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Add an item.

        Raises: DataError for an id that the dtype cannot hold.
        """
        ids = np.asarray(tokens, np.int64)
        if ids.size and not (self._limits[0] <= ids.min() and ids.max() <= self._limits[1]):
            raise DataError(f"item {len(self.sizes)}: an id from {ids.min()} to {ids.max()} is no {self.dtype}")
        self._stream.write(ids.astype(self.dtype).tobytes())
        self.sizes.append(len(ids))

    def add_documents(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Add documents of one item each, back to back in `tokens`."""
        assert (tokens.dtype, len(tokens)) == (self.dtype, sizes.sum()), (tokens.dtype, len(tokens), sizes.sum())
        self._stream.write(np.ascontiguousarray(tokens).tobytes())
        self.documents.extend(range(len(self.sizes) + 1, len(self.sizes) + len(sizes) + 1))
        self.sizes.extend(sizes.tolist())

    def end_document(self) -> None:
        """The items since the last call are one document."""
        self.documents.append(len(self.sizes))

    def add_all(self, data: IndexedData) -> None:
        """Add all items and documents of finished data.

        Raises: DataError for an id that the dtype cannot hold.
        """
        before = len(self.sizes)
        if data.index.dtype == self.dtype:
            for chunk in data.tokens.file.chunks():
                self._stream.write(chunk)
            self.sizes.extend(data.sizes.tolist())
        else:
            for item in range(len(data)):
                self.add(data[item])
        # differs: the original forgets where the documents end.
        self.documents.extend((data.documents[1:] + before).tolist())


@contextmanager
def written_index(prefix: Path, form: IndexForm = "mmap", vocab_size: int | None = None) -> Iterator[IndexedWriter]:
    """Write both files; they appear when the block ends well, the .idx last.

    vocab_size: decides between 2 and 4 bytes a token in the mmap form; None: 4. The cached form always takes 4.
    Raises: DataError when they cannot be written.
    """
    dtype = token_dtype(vocab_size if form == "mmap" else None)
    with ExitStack() as stack:
        index = stack.enter_context(replaced_file(indexed_file(prefix, "idx")))  # closed, thus renamed, last
        writer = IndexedWriter(stack.enter_context(replaced_file(indexed_file(prefix, "bin"))), dtype)
        yield writer
        index.write((_mmap_bytes if form == "mmap" else _cached_bytes)(writer))


def merge_indexed(prefixes: Sequence[Path], target: Path, form: IndexForm = "mmap") -> None:
    """Put data sets of one dtype behind each other.

    Raises: DataError.
    """
    parts = [IndexedData(prefix) for prefix in prefixes]
    with _written_alike(parts, target, form) as writer:
        for part in parts:
            writer.add_all(part)


def shuffle_indexed(prefixes: Sequence[Path], target: Path, seed: int, form: IndexForm = "mmap") -> None:
    """Write the documents of data sets of one dtype in random order.

    Raises: DataError.
    """
    parts = [IndexedData(prefix) for prefix in prefixes]
    bounds = np.cumsum([0, *(len(part.documents) - 1 for part in parts)])
    with _written_alike(parts, target, form) as writer:
        for number in np.random.default_rng(seed).permutation(bounds[-1]).tolist():
            at = int(np.searchsorted(bounds, number, side="right")) - 1
            first, end = parts[at].documents[number - bounds[at] :][:2].tolist()
            for item in range(first, end):
                writer.add(parts[at][item])
            writer.end_document()


def indexed_file(prefix: Path, ending: Literal["bin", "idx"]) -> Path:
    """One of the two files; a prefix may hold dots."""
    return Path(f"{prefix}.{ending}")


@contextmanager
def _written_alike(parts: Sequence[IndexedData], target: Path, form: IndexForm) -> Iterator[IndexedWriter]:
    """A writer for what these hold.

    Raises: DataError.
    """
    first = parts[0].index.dtype
    for part in parts:
        if part.index.dtype != first:
            raise DataError(f"{part.prefix}: holds {part.index.dtype}, the others {first}; prepare them alike")
    with written_index(target, form, 0 if form == "mmap" and first == token_dtype(0) else None) as writer:
        yield writer


def _mmap_bytes(writer: IndexedWriter) -> bytes:
    sizes = np.array(writer.sizes, "<i8")
    head = _MMAP_HEAD.pack(MMAP_MAGIC, VERSION, _CODES[writer.dtype], len(sizes), len(writer.documents))
    pointers = (np.cumsum(sizes) - sizes) * writer.dtype.itemsize
    return b"".join(
        (head, sizes.astype("<i4").tobytes(), pointers.tobytes(), np.array(writer.documents, "<i8").tobytes())
    )


def _cached_bytes(writer: IndexedWriter) -> bytes:
    sizes, documents = np.array(writer.sizes, "<i8"), np.array(writer.documents, "<i8")
    head = _CACHED_HEAD.pack(
        CACHED_MAGIC, VERSION, _CODES[writer.dtype], writer.dtype.itemsize, len(sizes), len(sizes), len(documents)
    )
    dimensions = np.arange(len(sizes) + 1, dtype="<i8")
    offsets = np.concatenate((np.zeros(1, "<i8"), np.cumsum(sizes, dtype="<i8")))
    return b"".join((head, *(table.tobytes() for table in (dimensions, offsets, sizes, documents))))
