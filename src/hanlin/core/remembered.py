"""What was found out by reading whole files, kept until one of them changes.

A file counts as unchanged while its size, its two times and its inode are those of the time when it was read. One that
was written a moment ago may change once more within the resolution of these times: of such nothing is kept.
Of several processes of a machine that ask the same, as the ranks of a run do, one finds it out; the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import expanded, replaced_file
from hanlin.core.locks import one_at_a_time

__all__ = [
    "HOME_CACHE",
    "MIN_REMEMBERED_BYTES",
    "SHA256",
    "keep",
    "recalled",
    "remembered",
    "remembered_sha256",
    "sha256_of",
    "state_of",
]

log = logging.getLogger(__name__)

HOME_CACHE = Path("~/.cache/hanlin")
"""For what is known of files that belong to no recipe with a cache of its own, such as weights."""

MIN_REMEMBERED_BYTES = 1 << 24
"""Weights of less than this are read each time; it takes milliseconds."""

SHA256 = "sha256"
"""The question of `remembered_sha256`."""

_SETTLED_SECONDS = 2.0


def remembered(cache: Path, files: Sequence[Path], question: str, find_out: Callable[[], Any]) -> Any:
    """The answer to a question about the content of files: a value of JSON, from `cache` if it lies there.

    question: all that the answer depends on besides the files. A cache that cannot be written is done without.
    Raises: what `find_out` raises.
    """
    path = _place(cache, files, question)
    if known := _known(path, files):
        return known[1]
    with ExitStack() as stack:
        with suppress(OSError, DataError):  # where no lock can be made, each finds out by itself
            stack.enter_context(one_at_a_time(path.with_suffix(".lock")))
        if known := _known(path, files):
            return known[1]
        state, found = state_of(files), find_out()
        keep(cache, files, question, state, found)
        return found


def keep(cache: Path, files: Sequence[Path], question: str, state: list[list[int]], found: Any) -> None:
    """Remember what was found out of files; state: `state_of` them before they were read."""
    if state == state_of(files) and time.time_ns() - max(max(one[1:3]) for one in state) > _SETTLED_SECONDS * 1e9:
        _write(_place(cache, files, question), [state, found])


def recalled(cache: Path, files: Sequence[Path], question: str) -> Any | None:
    """What `remembered` knows without finding out; None where that is nothing."""
    known = _known(_place(cache, files, question), files)
    return None if known is None else known[1]


def sha256_of(path: Path) -> str:
    """Of all bytes of a file, which are read for it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: Path, cache: Path = HOME_CACHE, find_out: Callable[[Path], str] | None = None) -> str:
    """The same from memory, where the file was read before; find_out: what reads it, where it was not (None: that)."""
    return remembered(cache, [path], SHA256, lambda: (find_out or sha256_of)(path))


def _place(cache: Path, files: Sequence[Path], question: str) -> Path:
    asked = json.dumps([question, [str(path.absolute()) for path in files]])
    return expanded(cache) / "remembered" / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"


def _known(path: Path, files: Sequence[Path]) -> list[Any] | None:
    """State and answer, if they lie at `path` and are those of the files as they are."""
    known = _read(path)
    return known if known is not None and known[0] == state_of(files) else None


def state_of(files: Sequence[Path]) -> list[list[int]]:
    """What tells that files are unchanged."""
    states = [path.stat() for path in files]
    return [[one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino, one.st_dev] for one in states]


def _read(path: Path) -> list[Any] | None:
    """State and answer; None unless they lie there as they were written."""
    try:
        checksum, _, content = path.read_bytes().partition(b" ")
        return json.loads(content) if checksum == _checksum(content) else None
    except (OSError, ValueError):
        return None


def _write(path: Path, known: list[Any]) -> None:
    content = json.dumps(known).encode()
    try:
        with replaced_file(path) as stream:
            stream.write(_checksum(content) + b" " + content)
    except (OSError, DataError) as error:
        log.warning("what was found out is not remembered: %s", error)


def _checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(content):08x}".encode()
