"""Packed files (gzip, zstd), told by their first bytes: unpacked as a stream, or into bytes with random access."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hanlin.core.errors import DataError
from hanlin.core.os_errors import explain
from hanlin.data.file_array import FileBytes, ScratchFile

__all__ = ["PACKED", "first_bytes", "name_inside", "opened", "read_unpacked"]

PACKED = (".gz", ".zst")
"""Endings of packed files; what is in them is told by the ending before."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = b"\x2a\x4d\x18"  # behind 0x50 to 0x5f: a frame that tools put first for their own use
_REFUSED = {
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
    b"BZh": "is packed by bzip2; unpack it, or pack it by gzip or zstd",
    b"\xfd7zXZ\0": "is packed by xz; unpack it, or pack it by gzip or zstd",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it",
    b"Rar!\x1a\x07": "is a rar archive; unpack it",
    b"PK\x03\x04": "is a zip archive, or a table of Excel; unpack it, or save the table as CSV UTF-8",
    b"\x89PNG": "is a picture; expected rows of text",
    b"\xff\xd8\xff": "is a picture; expected rows of text",
    b"%PDF": "is a PDF; take the text out of it, and write each text as a row",
    b"SQLite f": "is a database of SQLite; write its table as CSV UTF-8 or JSON lines",
    b"\xd0\xcf\x11\xe0": "is a table or text of old Office; save it as CSV UTF-8",
}
_MAX_RATIO = 50  # text is packed to a third or a tenth
_SMALLEST_LIMIT = 1 << 28
_HELD_BYTES = 1 << 26  # unpacked, in memory; more lies in a temporary file
_PIECE_BYTES = 1 << 22
_ZSTD_PIECE = 1 << 10  # packed; four bytes may stand for 128 KB, so this for 32 MB


def first_bytes(path: Path, count: int = 256) -> bytes:
    """The first bytes of a file, unpacked.

    Raises: DataError.
    """
    with opened(path) as (_, stream):
        return stream.read(count)


def name_inside(path: Path) -> Path:
    """The path without the ending of a packed file."""
    return path.with_suffix("") if path.suffix in PACKED else path


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file as it lies there, and unpacked (the same stream when it is not packed).

    Raises: DataError naming the file, also for what goes wrong while the block reads.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(explain(error, path, "read")) from None
    with raw:
        try:
            yield raw, _unpacking(path, raw)
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno:  # those of the unpackers have no number
                raise DataError(explain(error, path, "read")) from None
            raise DataError(f"{path}: damaged or cut off ({error}); copy it again") from None
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # of one of two packages
                raise
            raise DataError(f"{path}: damaged or cut off ({error}); copy it again") from None


def read_unpacked(path: Path) -> bytes | FileBytes:
    """The whole file, unpacked, as something that slices to bytes. Of a packed file 64 MB are held in memory; a larger
    one is unpacked into a temporary file. One that stands for far more than its size, as no text does, is refused.

    Raises: DataError.
    """
    with opened(path) as (raw, stream):
        if stream is raw:
            return FileBytes(path)
        limit = max(_SMALLEST_LIMIT, _MAX_RATIO * path.stat().st_size)
        pieces, size, scratch = [], 0, None
        while piece := stream.read(_PIECE_BYTES):
            pieces.append(piece)
            if (size := size + len(piece)) > limit:
                raise DataError(
                    f"{path}: unpacks to more than {_MAX_RATIO} times its size, as no text does; unpack it yourself if "
                    "it is right"
                )
            if scratch or size > _HELD_BYTES:
                scratch = scratch or ScratchFile(path)
                scratch.append(b"".join(pieces))
                pieces.clear()
    return scratch.read() if scratch else b"".join(pieces)


def _unpacking(path: Path, raw: IO[bytes]) -> IO[bytes]:
    head = raw.read(8)
    raw.seek(0)
    if head[:2] == _GZIP:
        return _checked(path, gzip.open(raw))  # type: ignore[arg-type]
    if head[:4] == _ZSTD or (head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5):
        return _checked(path, io.BufferedReader(_open_zstd(path, raw)))
    _refuse_others(path, head)
    return raw


def _checked(path: Path, stream: Any) -> IO[bytes]:
    """An unpacking stream, unless what it unpacks is none of ours."""
    _refuse_others(path, stream.peek(8)[:8])
    return stream


def _refuse_others(path: Path, head: bytes) -> None:
    for start, reason in _REFUSED.items():
        if head.startswith(start):
            raise DataError(f"{path}: the file {reason}")


def _open_zstd(path: Path, raw: IO[bytes]) -> Any:
    """An unpacking stream: of the standard library from Python 3.14 on, else by a package."""
    try:
        from compression import zstd  # type: ignore[import-not-found]
    except ImportError:
        try:
            import zstandard  # type: ignore[import-not-found]
        except ImportError:
            raise DataError(f"{path}: is packed by zstd; pip install 'hanlin[zstd]', or unpack it") from None
        return _ZstdStream(raw, zstandard.ZstdDecompressor)
    return zstd.open(raw)


class _ZstdStream(io.RawIOBase):
    """Unpacks frame after frame; zstandard's own stream takes a file that is cut off for a whole one."""

    def __init__(self, raw: IO[bytes], decompressor: Any) -> None:
        self._raw, self._new = raw, lambda: decompressor().decompressobj()
        self._frame, self._packed, self._ready = self._new(), b"", b""
        self._is_inside = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._packed or self._raw.read(_ZSTD_PIECE)
            if not packed:
                if self._is_inside:
                    raise EOFError("the file ends in the middle")
                return 0
            self._ready, self._is_inside = self._frame.decompress(packed), True
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame, self._is_inside = self._new(), False
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size
