"""Folders of a cache, complete or absent, whose every byte is compared with a checksum before they are used.

`cache.json` is the seal: size and checksum of each file, small facts about the whole, and its own checksum.
"""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hanlin.core.errors import DataError
from hanlin.core.files import private_name, published, replaced_file
from hanlin.data.file_array import FileBytes

log = logging.getLogger(__name__)

SEAL = "cache.json"
Opened = TypeVar("Opened")


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write down what lies in a folder, without which it is no cache."""
    files = {path.name: _state_of(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SEAL}
    content = {"files": files, "facts": facts}
    with replaced_file(folder / SEAL) as stream:
        stream.write(json.dumps({**content, "checksum": _checksum(content)}, ensure_ascii=False).encode())


def read_seal(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The names of the files and the facts, after comparing each file with the seal.

    Raises: ValueError saying what is damaged.
    """
    try:
        content = json.loads((folder / SEAL).read_text("utf-8"))
        files, facts, checksum = content["files"], content["facts"], content["checksum"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{SEAL} cannot be read ({type(error).__name__})") from None
    if checksum != _checksum({"files": files, "facts": facts}):
        raise ValueError(f"{SEAL} has changed since it was written")
    for name, state in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _state_of(folder / name) != state:
            raise ValueError(f"{name} has changed since it was written")
    return list(files), facts


def open_or_make(
    folder: Path, read: Callable[[Path], Opened], make: Callable[[Path], None], what: str
) -> tuple[Opened, bool]:
    """What lies in a sealed folder, which is made if it is not there, and made anew if it is damaged.

    read: opens the folder, and raises ValueError for a damaged one; make: fills an empty folder and seals it; what:
    names the content in the log. Also tells whether it was made now.
    Raises: DataError; what `make` raises.
    """
    if (found := _read(folder, read, what)) is not None:
        return found, False
    with published(folder, "keep") as private:
        private.mkdir()
        make(private)
    try:
        return read(folder), True
    except ValueError as error:
        raise DataError(f"{folder}: damaged while it was written ({error}); look at the disk") from None


def _read(folder: Path, read: Callable[[Path], Opened], what: str) -> Opened | None:
    if not folder.is_dir():
        return None
    try:
        return read(folder)
    except ValueError as error:
        log.warning("%s in %s: damaged (%s); made again", what, folder, error)
    aside = private_name(folder)
    with suppress(FileNotFoundError):  # another process has found the same
        folder.rename(aside)
        shutil.rmtree(aside)
    return None


def _state_of(path: Path) -> list[int]:
    """Size and checksum of a file."""
    data, checksum = FileBytes(path), 0
    for chunk in data.chunks():
        checksum = zlib.crc32(chunk, checksum)
    return [len(data), checksum]


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
