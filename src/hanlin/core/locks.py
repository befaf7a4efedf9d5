"""Locks that a process holds on files and folders of its own, and that go with it when it dies.

On a network file system they are as good as that system's locks.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from hanlin.core.errors import ConfigError
from hanlin.core.os_errors import writable

__all__ = ["LOCK_FILE", "held", "lock_file", "one_at_a_time", "try_lock"]

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""In a folder that one process at a time may write to: who holds it."""

_MOMENT_SECONDS = 1.0
"""So long the ranks of a command that was killed may take to die with it."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder alone, from all processes that ask for it here.

    Raises: ConfigError saying who holds it and since when, DataError when nothing can be written there.
    """
    with lock_file(folder / LOCK_FILE, folder):
        yield


@contextmanager
def lock_file(path: Path, target: Path) -> Iterator[None]:
    """Hold `path`, a file made for this that says who has it, while something is done to `target`.

    Raises: ConfigError when another process has it, DataError when nothing can be written there.
    """
    with _locked(path, target) as stream:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        try:
            with writable(path):
                stream.truncate(0)
                os.write(stream.fileno(), holder.encode())  # past the stream, which would try again when it is closed
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a block with the same `path`, a file made for this."""
    import fcntl  # not on Windows

    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def try_lock(stream: IO[str] | int) -> Literal["ours", "taken", "unknown"]:
    """Lock an open file or folder (a stream or a handle) until it is closed.

    taken: another process has it; unknown: the file system has no locks.
    """
    import fcntl  # not on Windows

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unknown"
    return "ours"


def _locked(path: Path, target: Path) -> IO[str]:
    """The locked file.

    Raises: ConfigError when another process has it, and does not give it up within a moment.
    """
    limit = time.monotonic() + _MOMENT_SECONDS
    while True:
        with writable(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+", encoding="utf-8", errors="replace")
        state = try_lock(stream)
        if state == "unknown":
            log.warning("%s: the file system has no locks; see that no other process writes there", path.parent)
            return stream
        if state == "taken" and time.monotonic() < limit:
            stream.close()
            time.sleep(0.02)
            continue
        if state == "taken":
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            raise ConfigError(f"{target}: is in use by {holder}; wait until it has ended, or choose another one")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        stream.close()  # who had it has removed it at its end, meanwhile
