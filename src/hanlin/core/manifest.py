"""`manifest.json` of a folder: the size and sha256 of each of its files, so that a changed one is not taken for it.

Folders of weights are read with `check_manifest`. A file that was hashed once is not hashed again on this machine as
long as its size, times and inode are the same (core/remembered.py); `manifest_problems` alone hashes always.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import published, read_json_object, sync
from hanlin.core.remembered import MIN_REMEMBERED_BYTES, remembered_sha256, sha256_of

__all__ = [
    "MANIFEST",
    "FileFacts",
    "check_complete",
    "check_manifest",
    "manifest_problems",
    "published_folder",
    "write_manifest",
]

MANIFEST = "manifest.json"

_LEVELS = 3  # of folders between a manifest and a file that is named by its path

FileFacts = Mapping[str, tuple[int, str]]
"""File -> size in bytes and sha256."""


@contextmanager
def published_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write files to; with its manifest it becomes `target` in one step, as `published` says.

    Raises: CheckpointError when `target` exists, DataError when nothing can be written there.
    """
    with published(target, "replace" if overwrite else "refuse") as beside:
        beside.mkdir()
        yield beside
        write_manifest(beside)


def write_manifest(folder: Path, known: FileFacts | None = None) -> None:
    """List all files in a folder; they and the list are on the disk when it returns.

    known: size and sha256 of files that are on the disk already, by their paths in the folder.
    """
    listed = dict(known or {})
    every = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in every.items() if name not in {MANIFEST, *listed}}
    for path in files.values():
        sync(path)
    with ThreadPoolExecutor(4) as threads:  # hashing leaves the other threads alone
        for (name, path), digest in zip(files.items(), threads.map(sha256_of, files.values()), strict=True):
            listed[name] = (path.stat().st_size, digest)
    facts = {name: {"size": size, "sha256": digest} for name, (size, digest) in sorted(listed.items())}
    path = folder / MANIFEST
    path.write_text(json.dumps({"files": facts}, ensure_ascii=False, indent=1), encoding="utf-8")
    for part in (path, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(part)


def manifest_problems(
    folder: Path, has_all: Callable[[FileFacts], bool] = lambda _: True, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """What is wrong with the files of a folder that has a manifest; nothing if all are as they were written.

    has_all: whether the files that the manifest lists are all that there must be; share: (number, count) of a rank,
    whose share of the files is read: each of `count` ranks reads others.
    """
    try:
        listed = _listed(read_json_object(folder / MANIFEST)) if (folder / MANIFEST).is_file() else None
    except CheckpointError:
        return [f"{MANIFEST} cannot be read"]
    if listed is None:
        return [f"{MANIFEST} cannot be read" if (folder / MANIFEST).is_file() else f"{MANIFEST} is missing"]
    if not has_all(listed):
        return [f"{MANIFEST} is incomplete"]
    number, count = share
    own = sorted(listed)[number::count]
    return _differing(folder, {name: listed[name] for name in own}, sha256_of)


def check_manifest(path: Path, sha256: Callable[[Path], str] | None = None, later: Container[Path] = ()) -> None:
    """See that the folder of `path`, or `path` itself, is as it was written; one without a manifest is not looked at.

    sha256: what reads a large file, where its hash is not known (None: `sha256_of`); later: files of which nothing but
    the size is compared, because who loads them takes their hash.

    Raises: CheckpointError saying what was changed.
    """
    path = Path(path).absolute()
    for folder in [path, *path.parents][: _LEVELS + 1]:
        if not (folder / MANIFEST).is_file():
            continue
        try:
            listed = _listed(read_json_object(folder / MANIFEST))
        except CheckpointError as error:
            if folder != path:  # another program's
                continue
            raise CheckpointError(f"{error}, or remove it to read the folder unchecked") from None
        if listed is not None and not listed and folder == path:
            raise CheckpointError(f"{folder / MANIFEST}: lists no files; restore it from a copy, or remove it")
        inner = path.relative_to(folder).as_posix()
        if listed is not None and (folder == path or any(f"{name}/".startswith(f"{inner}/") for name in listed)):
            _check(folder, listed, sha256, later)
            return


def check_complete(folder: Path) -> None:
    """See that all files of a folder's manifest are there, before what is left of them is taken for something else.

    Nothing but the manifest is read, if there is one.
    Raises: CheckpointError.
    """
    try:
        listed = _listed(read_json_object(folder / MANIFEST)) if (folder / MANIFEST).is_file() else None
    except CheckpointError:
        return  # `check_manifest` tells
    if gone := [f"{name} is missing" for name in listed or () if not (folder / name).is_file()]:
        raise _unlike(folder, gone)


def _check(folder: Path, listed: FileFacts, sha256: Callable[[Path], str] | None, later: Container[Path] = ()) -> None:
    is_small = sum(size for size, _ in listed.values()) < MIN_REMEMBERED_BYTES
    known_or_read = partial(remembered_sha256, find_out=sha256)
    if problems := _differing(folder, listed, sha256_of if is_small else known_or_read, later):
        raise _unlike(folder, problems)


def _unlike(folder: Path, problems: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder}: not as it was written: {'; '.join(shorten(problems))}; restore it from a copy, or, if this was "
        f"changed on purpose, remove its {MANIFEST}"
    )


def _listed(values: dict[str, Any]) -> FileFacts | None:
    """None for what is another program's; nothing where all was taken out."""
    if not values:
        return {}
    try:
        return {name: (int(facts["size"]), str(facts["sha256"])) for name, facts in values["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _differing(
    folder: Path, listed: FileFacts, sha256: Callable[[Path], str], later: Container[Path] = ()
) -> list[str]:
    def problem(name: str) -> str | None:
        path, (size, digest) = folder / name, listed[name]
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        return None if path in later or sha256(path) == digest else f"{name} was changed (its sha256 is another)"

    with ThreadPoolExecutor(4) as threads:  # hashing leaves the other threads alone
        return [found for found in threads.map(problem, listed) if found is not None]
