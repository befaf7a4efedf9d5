"""Files and folders that appear whole or not at all, JSON that names its file when it cannot be read.

Whatever is published is on the disk (fsync) before it gets its name, and so is the name before the function returns.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from hanlin.core.errors import CheckpointError, ConfigError, DataError, HanlinError
from hanlin.core.json_text import parse_json

__all__ = [
    "check_regular",
    "held",
    "one_at_a_time",
    "published",
    "read_json",
    "read_json_object",
    "replaced_file",
    "sync",
    "write_json",
]

LOCK_FILE = ".lock"
"""In a folder that one process at a time may write to: who holds it."""


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a private file beside `path`, renamed to it at the end and removed on any error.

    Raises: DataError when nothing can be written there.
    """
    private = _private(path)
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = private.open("xb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        private.replace(path)
        sync(path.parent)
    except BaseException:
        private.unlink(missing_ok=True)
        raise


@contextmanager
def published(target: Path, if_exists: Literal["refuse", "replace", "keep"] = "refuse") -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` in one step if all goes well.

    Else it vanishes. if_exists: what becomes of a `target` that is there by then; keep: it stays, since another process
    that makes the same was faster.
    Raises: CheckpointError when `target` is there already and is to be refused, DataError when nothing can be written.
    """
    target = Path(target)
    if if_exists == "refuse" and target.exists():
        raise CheckpointError(f"{target}: exists already; choose another target or ask for overwriting")
    private = _private(target)
    with _writable(target):
        private.mkdir(parents=True)
    try:
        yield private / target.name
        _sync_all(private / target.name)
        _swap_in(private / target.name, target, private / "replaced", if_exists)
        sync(target.parent)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _swap_in(new: Path, target: Path, replaced: Path, if_exists: str) -> None:
    if target.exists():
        if if_exists == "keep":
            return
        target.rename(replaced)
    try:
        new.rename(target)
    except OSError:
        if if_exists == "keep" and target.exists():
            return
        if replaced.exists():
            replaced.rename(target)
        raise


def _private(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has; what is made under it has the process's usual permissions."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _sync_all(path: Path) -> None:
    for part in [*path.rglob("*"), path]:
        sync(part)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
def held(folder: Path) -> Iterator[None]:
    """Hold a folder alone, from all processes that ask for it here; the lock of a process that dies goes with it.

    On a network file system it is as good as that system's locks.
    Raises: ConfigError saying who holds it and since when, DataError when nothing can be written there.
    """
    path = folder / LOCK_FILE
    with _lock(path) as stream:
        stream.truncate(0)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        stream.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    """The locked file.

    Raises: ConfigError when another process has it.
    """
    import fcntl  # not on Windows

    while True:
        with _writable(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            raise ConfigError(
                f"{path.parent}: is in use by {holder}; wait until it has ended, or choose another folder"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
        stream.close()  # who had it has removed it at its end, meanwhile


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; choose another folder") from None


def check_regular(path: Path, error: type[HanlinError]) -> None:
    """See that a path that exists is a file or a folder: a pipe would be waited for, a device never ends.

    Raises: `error`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise error(f"{path}: is a pipe or a device; write what comes out of it to a file, and name that")


def read_json(path: Path, error: type[HanlinError] = CheckpointError, *, holds: str = "") -> Any:
    """One JSON value; holds: says in messages what the file is expected to hold.

    Raises: `error`, naming the file and the line.
    """
    check_regular(path, error)
    expected = f"; it holds {holds}" if holds else "; write or copy the file again"
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as found:
        raise error(f"{path}: cannot be read: {found.strerror}{expected}") from None
    except json.JSONDecodeError as found:
        raise error(f"{path}:{found.lineno}: not readable as JSON ({found.msg}){expected}") from None
    except ValueError as found:
        raise error(f"{path}: not readable as JSON ({found}){expected}") from None


def read_json_object(path: Path, error: type[HanlinError] = CheckpointError) -> dict[str, Any]:
    """A JSON object.

    Raises: `error`.
    """
    values = read_json(path, error)
    if not isinstance(values, dict):
        raise error(f"{path}: a JSON object is expected, this is a {type(values).__name__}")
    return values


def write_json(path: Path, values: Any) -> None:
    """Write a value as JSON that people can read."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
