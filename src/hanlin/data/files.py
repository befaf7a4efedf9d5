"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hanlin.core.errors import DataError


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a private file beside `path`, renamed to it at the end and removed on any error."""
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """A private folder beside `path`, renamed to it at the end and removed on any error.

    If `path` exists by then (another process was faster) that one stays.
    """
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield private
        os.chmod(private, 0o777 & ~_umask())
        try:
            os.rename(private, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a block with the same `path`, a file made for this."""
    import fcntl  # not on Windows

    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; choose another folder") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
