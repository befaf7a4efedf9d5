"""Files and folders that appear whole or not at all, JSON that names its file when it cannot be read.

Whatever is published is on the disk (fsync) before it gets its name, and so is the name before the function returns.
Until then it lies beside its place under a hidden name of its own (`.NAME.xxxxxxxx.tmp`), which its process holds: what
a killed process has left is told by that, and removed when the same target is written again.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from hanlin.core.errors import CheckpointError, ConfigError, HanlinError
from hanlin.core.json_text import parse_json
from hanlin.core.locks import LOCK_FILE, lock_file, try_lock
from hanlin.core.os_errors import naming, reason_of, writable

__all__ = [
    "check_readable",
    "check_regular",
    "check_target",
    "expanded",
    "has_file",
    "may_write",
    "missing_link",
    "path_of",
    "private_folder",
    "private_name",
    "published",
    "read_json",
    "read_json_object",
    "remove_leftovers",
    "replaced_file",
    "sync",
    "write_json",
    "written_alone",
]

IfExists = Literal["refuse", "replace", "keep"]

_PRIVATE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
_REPLACED = ".replaced"
"""Behind the name of what is written: a suffix, so that no target can be called so."""
_EXCHANGE, _NO_REPLACE = 2, 1  # flags of Linux's renameat2


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a private file beside `path`, renamed to it at the end and removed on any error.

    A symbolic link stays, and what it leads to is replaced; a device or a pipe is written to as it is.
    Raises: DataError when nothing can be written there; OSError naming `path` when that is found out later.
    """
    path = _followed(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_replaced = path.is_file() or not path.exists()
        if not is_replaced:
            path.open("wb").close()  # of a folder it says what is wrong
    if not is_replaced:
        with naming(path), path.open("wb") as stream:
            yield stream
        return
    with naming(path), _private(path, lambda private: private.open("xb").close()) as private:
        try:
            with private.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            private.replace(path)
            sync(path.parent)
        except BaseException:
            private.unlink(missing_ok=True)
            raise


def check_readable(path: Path) -> None:
    """Raises: OSError, which readers of other programs would take for a damaged file."""
    path.open("rb").close()


def path_of(given: Any, name: str) -> Path:
    """What a caller names a file or folder by; name: of the argument.

    Raises: ConfigError.
    """
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name}: expected the path of a file or folder, found {given!r:.80}")
    return Path(given)


def expanded(path: Path) -> Path:
    """`~` is the home folder; a user that this machine does not know leaves the path as it is."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def check_target(path: Path) -> Path:
    """The path of a file that is to be written, where its symbolic links lead to; nothing is written yet.

    Raises: DataError when it is a folder, or there is no permission to write it.
    """
    with writable(path):
        path = _followed(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "", str(path))
        existing = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
        if existing != path and not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(path))
        if not may_write(existing):
            raise PermissionError(errno.EACCES, "", str(existing))
    return path


def may_write(path: Path) -> bool:
    """Whether this process has the permission to write a file, or into a folder."""
    mode = os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def missing_link(path: Path) -> str:
    """What to add to "there is no such file" where the name is there, but leads nowhere."""
    return f" (it is a symbolic link to {os.readlink(path)}, which is not there)" if path.is_symlink() else ""


def _followed(path: Path) -> Path:
    """Where a symbolic link leads to; another path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path  # resolve() fails where links lead in a circle


def private_name(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has; what is left under it is removed as any leftover."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def private_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` for as long as the block lasts; what a killed process left of one goes first.

    Raises: DataError when nothing can be written there.
    """
    remove_leftovers(target.parent, target.name)
    with _private(target, lambda private: private.mkdir(parents=True)) as private:
        try:
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)


@contextmanager
def published(target: Path, if_exists: IfExists = "refuse") -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` in one step if all goes well.

    Else it vanishes. if_exists: what becomes of a `target` that is there by then; keep: it stays, since another process
    that makes the same was faster. What is replaced is there until the new one is (on file systems that can exchange
    two names; on others there is nothing for a moment, and a kill then is mended when the target is written again).
    Raises: CheckpointError when `target` is there already and is to be refused, DataError when nothing can be written.
    """
    target = _followed(Path(target))
    if if_exists == "refuse" and target.exists():
        raise _exists(target)
    with naming(target), private_folder(target) as private:
        yield private / target.name
        _sync_all(private / target.name)
        sync(private)
        _put_in_place(private / target.name, target, private / f"{target.name}{_REPLACED}", if_exists)
        sync(target.parent)


@contextmanager
def written_alone(target: Path) -> Iterator[None]:
    """Write a file or a folder alone, from all processes that ask for it here; what killed ones have left goes first.

    target: may also be what the names of several files begin with.
    Raises: ConfigError saying who writes it and since when, DataError when nothing can be written there.
    """
    place = target.absolute()
    with lock_file(place.with_name(f".{place.name}{LOCK_FILE}"), target):
        remove_leftovers(place.parent, place.name)
        remove_leftovers(place.parent, f".{place.name}")  # of the hidden file of what is not finished
        yield


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what processes that are dead have left of files and folders whose names begin with `name`.

    A whole folder that was about to replace another one gets its place.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    for found in filter(None, map(_PRIVATE.fullmatch, names)):
        if found["name"].startswith(name):
            with suppress(FileNotFoundError, PermissionError):
                _remove_if_left(folder / found[0], folder / found["name"])


def _remove_if_left(private: Path, target: Path) -> None:
    if private.is_symlink():  # only folders that are held have such
        private.unlink()
        return
    handle = os.open(private, os.O_RDONLY)
    try:
        if try_lock(handle) != "ours":
            return
        if (private / f"{target.name}{_REPLACED}").exists() and not target.exists():
            (private / target.name).rename(target)
            sync(target.parent)
        if private.is_dir():
            shutil.rmtree(private)
        else:
            private.unlink()
    finally:
        os.close(handle)


@contextmanager
def _private(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden path beside `path` that nobody else has, held until the block ends.

    What is made under it has the process's usual permissions.
    """
    while True:
        private = private_name(path)
        with writable(path):
            try:
                make(private)
            except OSError as error:
                if error.filename == str(private):  # which nobody knows
                    error.filename = str(path)
                raise
        if (handle := _hold(private)) is not None:
            break
    try:
        yield private
    finally:
        os.close(handle)


def _hold(private: Path) -> int | None:
    """The locked handle; None when another process took the path for a leftover before."""
    with suppress(FileNotFoundError):
        handle = os.open(private, os.O_RDONLY)
        if try_lock(handle) != "taken" and private.exists():
            return handle
        os.close(handle)
    return None


def _put_in_place(new: Path, target: Path, replaced: Path, if_exists: IfExists) -> None:
    if if_exists == "replace" and target.exists():
        if not _rename(new, target, _EXCHANGE):
            target.rename(replaced)
            new.rename(target)
        return
    try:
        if not _rename(new, target, _NO_REPLACE):
            if target.exists():
                raise FileExistsError
            new.rename(target)
    except FileExistsError:
        if if_exists == "refuse":
            raise _exists(target) from None


def _exists(target: Path) -> CheckpointError:
    return CheckpointError(f"{target}: exists already; choose another target or ask for overwriting")


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2; False where the system or the file system does not have it.

    Raises: OSError.
    """
    if not hasattr(_LIBC, "renameat2"):
        return False
    here = -100  # AT_FDCWD
    if _LIBC.renameat2(here, os.fsencode(source), here, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(target))


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


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


def check_regular(path: Path, error: type[HanlinError]) -> None:
    """See that a path that exists is a file or a folder: a pipe would be waited for, a device never ends.

    Raises: `error`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise error(f"{path}: is a pipe or a device; write what comes out of it to a file, and name that")


def has_file(path: Path, error: type[HanlinError] = CheckpointError) -> bool:
    """Whether a file is at a path; nothing may be there.

    Raises: `error` where something else is: a folder, a pipe, a link that leads nowhere.
    """
    if path.is_file():
        return True
    if path.is_dir():
        raise error(f"{path}: is a folder, and a file is expected; remove it, or put the file there")
    check_regular(path, error)
    if path.is_symlink():
        raise error(f"{path}: there is no such file{missing_link(path)}; mend or remove the link")
    return False


def read_json(path: Path, error: type[HanlinError] = CheckpointError, *, holds: str = "") -> Any:
    """One JSON value; holds: says in messages what the file is expected to hold.

    Raises: `error`, naming the file and the line.
    """
    check_regular(path, error)
    expected = f"; it holds {holds}" if holds else "; write or copy the file again"
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as found:
        more = f"; it holds {holds}" if holds else ""
        raise error(f"{path}: cannot be read: {reason_of(found, 'read')}{more}") from None
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
    path.write_bytes(_readable(values))


def replace_json(path: Path, values: Any) -> None:
    """The same of a file that appears, or is replaced, whole or not at all."""
    with replaced_file(path) as stream:
        stream.write(_readable(values))


def _readable(values: Any) -> bytes:
    return (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode()
