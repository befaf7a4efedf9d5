"""What the operating system refuses, as one sentence: which file, what is wrong with it, what to do.

An OSError that nobody has caught ends a command with such a sentence (cli/main.py). `naming` says which file it is
about where Python does not know: a full disk is noticed at a write, which has no name.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hanlin.core.errors import DataError

__all__ = ["explain", "naming", "reason_of", "system_error", "writable"]

_SHOWN_CHARACTERS = 200
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's words, which come without a number

_MEANINGS = {
    errno.EACCES: "no permission to {do} it; ask for the permission, or choose another path",
    errno.EPERM: "the system does not allow to {do} it; ask for the permission, or choose another path",
    errno.EROFS: "lies on a file system that can only be read; choose a folder elsewhere",
    errno.ENOSPC: "no space is left on its disk; make room there, or choose a folder on another disk",
    errno.EDQUOT: "your quota on its disk is used up; remove files of yours, or choose a folder on another disk",
    errno.EFBIG: "the file is larger than its file system, or the limit of this process (ulimit -f), allows",
    errno.ENAMETOOLONG: "the name is too long (a name has at most 255 bytes, of which a Chinese character takes 3); "
    "choose a shorter one",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.EISDIR: "is a folder, and a file is expected; name a file",
    errno.ENOTDIR: "a file stands where a folder is expected; check the path",
    errno.EEXIST: "is there already, a file perhaps where a folder is expected; choose another path",
    errno.ENOTEMPTY: "is a folder that is not empty; choose another path",
    errno.ELOOP: "its symbolic links lead in a circle; name the file itself",
    errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.EIO: "the disk fails to {do} it; look at the system's log, and save what is there",
    errno.ESTALE: "the network file system has lost it; mount it anew, and start again",
    errno.ETXTBSY: "is a program that is running; choose another path",
    errno.EBUSY: "is in use by the system; choose another path",
    errno.ENXIO: "is a device or a pipe without another end; name a file",
    errno.ENODEV: "is a device that cannot be used so; name a file",
    errno.EINVAL: "cannot be used so (is it a device or a pipe?); name a file",
}


Doing = Literal["read", "write", "read or write"]


def explain(error: OSError, path: Path | None = None, doing: Doing = "read or write") -> str:
    """The sentence; path: what it is about, where the error does not say it.

    Python tells for most errors, but not for all, which file they are about.
    """
    name = path if error.filename is None else os.fsdecode(error.filename)
    failed = {"read": "cannot be read: ", "write": "cannot be written: "}.get(doing, "")
    return f"{'what is written' if name is None else _shorten(str(name))}: {failed}{reason_of(error, doing)}"


def reason_of(error: OSError, doing: Doing) -> str:
    """The sentence without its subject."""
    if error.errno is None and _SHORT_WRITE.fullmatch(str(error)):
        return (
            "no space is left on its disk, or the limit of this process (ulimit -f) is reached; make room there, or "
            "choose a folder on another disk"
        )
    reason = _MEANINGS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return reason.format(do=doing)


def system_error(error: BaseException) -> OSError | None:
    """What the system refused, where another error followed from it: torch's container says "unexpected pos"."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError without a name be about `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raises: DataError saying that nothing can be written to `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(explain(error, path, "write")) from None


def _shorten(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[: _SHOWN_CHARACTERS // 2]}...{name[-50:]}"
