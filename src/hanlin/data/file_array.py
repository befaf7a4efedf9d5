"""Bytes and arrays of a file, read when they are asked for.

Nothing is mapped: a mapped file that another program shortens kills the process (SIGBUS), at whatever step it is.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import DamagedFileError, DataError
from hanlin.core.os_errors import explain, reason_of

CHUNK_BYTES = 1 << 24


class FileBytes:
    """The bytes of a file as it was when it was opened; slices like `bytes`, `[size]`.

    A file that was removed or replaced meanwhile is still read; one that became shorter, or was written to, is an
    error, unless its bytes were hashed before and are still the same: more may be appended to it, and its time be set.
    """

    def __init__(self, path: Path, size: int | None = None, handle: int | None = None) -> None:
        """size: of the part from the beginning that is read; None: all. handle: of a file that is open, in place of the
        one at `path`, which then only names it; it is closed with this object.

        Raises: DataError.
        """
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY) if handle is None else handle
        except OSError as error:
            raise DataError(explain(error, path, "read")) from None
        found = os.fstat(self._handle)
        self._size = found.st_size if size is None else size
        self._written = None if handle is not None else _written(found)
        self._digest = ""

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self[:]

    def __getitem__(self, part: slice) -> bytes:
        start, end, step = part.indices(self._size)
        assert step == 1, part
        return self.read(start, max(end - start, 0))

    def read(self, start: int, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises: DataError when the file does not have them any more, or the disk does not give them.
        """
        pieces, left = [], size
        while left:
            try:
                piece = os.pread(self._handle, left, start + size - left)
            except OSError as error:
                raise DamagedFileError(explain(error, self.path, "read")) from None
            if not piece:
                raise self._shorter()
            pieces.append(piece)
            left -= len(piece)
        self.check_unwritten()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check_unwritten(self) -> None:
        """See that what was read is still what the file holds; `read` does so by itself.

        Raises: DamagedFileError.
        """
        if self._written is not None and self._written != (now := _written(os.fstat(self._handle))):
            self._refuse_changed(now)

    def chunks(self, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """All bytes, piece by piece."""
        for start in range(0, self._size, size):
            yield self[start : start + size]

    @property
    def sha256(self) -> str:
        """Of all bytes, read for it."""
        self._digest = self._hash()
        return self._digest

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def _refuse_changed(self, now: tuple[int, int]) -> None:
        """Raises: DamagedFileError unless the bytes are those that were hashed."""
        if now[0] < self._size:
            raise self._shorter()
        before, self._written = self._written, now  # as it is read below
        if not self._digest or self._hash() != self._digest:
            self._written = before
            raise DamagedFileError(
                f"{self.path}: was written to while it was in use; leave data alone while they are read, or write "
                "another file and give it the name; then begin again"
            )

    def _shorter(self) -> DamagedFileError:
        return DamagedFileError(
            f"{self.path}: became shorter while it was in use: {os.fstat(self._handle).st_size:,} bytes, there were "
            f"{self._size:,}; leave data alone while they are read, restore the file, and go on"
        )


def _written(found: os.stat_result) -> tuple[int, int]:
    """What changes when a file is written to: its size and the time of that."""
    return found.st_size, found.st_mtime_ns


class ScratchFile:
    """Bytes that are appended and read again, in a file without a name in the folder for temporary files (TMPDIR).

    It is gone when it is closed, and when the process ends in whatever way.
    """

    def __init__(self, of: Path) -> None:
        """of: the file that the bytes are made of, for messages.

        Raises: DataError when there is no place for it.
        """
        self._of, self.size = of, 0
        try:
            self._stream = tempfile.TemporaryFile(prefix="hanlin-", buffering=0)  # noqa: SIM115 (lives as long as we)
        except OSError as error:
            raise self._no_room(error) from None

    def append(self, data: bytes) -> None:
        """Raises: DataError when the disk is full."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.pwrite(self._stream.fileno(), rest, self.size + len(data) - len(rest)) :]
        except OSError as error:
            raise self._no_room(error) from None
        self.size += len(data)

    def read(self) -> FileBytes:
        """What was appended so far."""
        return FileBytes(self._of, self.size, os.dup(self._stream.fileno()))

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"{self._of}: what is read of it is kept in a temporary file (TMPDIR is {tempfile.gettempdir()}), which "
            f"fails: {reason_of(error, 'write')}; set TMPDIR to a folder on a disk with room"
        )


@dataclass(frozen=True)
class FileArray:
    """An array in a file, `[length, ...]`, of which slices and single entries along its first dimension are read.

    offset: of its first byte.
    """

    file: FileBytes
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of_npy(cls, path: Path) -> FileArray:
        """Raises: DataError for a file that is no whole .npy file of numbers."""
        try:
            with path.open("rb") as stream:
                version = np.lib.format.read_magic(stream)
                read = _HEADERS[version]
                shape, is_fortran, dtype = read(stream)
                offset = stream.tell()
        except (OSError, ValueError, KeyError, SyntaxError, TypeError) as error:
            raise DataError(f"{path}: no .npy file: {error}") from None
        found = cls(FileBytes(path), dtype, shape, offset)
        if dtype.hasobject or (is_fortran and len(shape) > 1) or len(found.file) != offset + found.nbytes:
            raise DataError(f"{path}: no whole .npy file of numbers: {shape} of {dtype} in {len(found.file):,} bytes")
        return found

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, part: int | np.integer | slice) -> Any:
        """One entry, or a slice of them: an array of one's own."""
        if not isinstance(part, slice):
            place = int(part)
            assert 0 <= place < len(self), (place, self.shape)
            return self._read(place, 1)[0]
        start, end, step = part.indices(len(self))
        assert step == 1, part
        return self._read(start, max(end - start, 0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _read(self, start: int, count: int) -> np.ndarray:
        entry = math.prod(self.shape[1:]) * self.dtype.itemsize
        content = self.file.read(self.offset + start * entry, count * entry)
        return np.frombuffer(bytearray(content), self.dtype).reshape(count, *self.shape[1:])


_HEADERS: dict[tuple[int, int], Callable] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
