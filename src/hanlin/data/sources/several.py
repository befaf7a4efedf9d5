"""Paths that stand for several files: a pattern (`data/*.jsonl`), a folder of data files, one of `save_to_disk`."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import DataError, shorten
from hanlin.core.files import check_regular
from hanlin.core.json_text import parse_json
from hanlin.core.os_errors import explain
from hanlin.data.sources import columns, delimited
from hanlin.data.sources.packed import name_inside
from hanlin.data.sources.records import DataFile

log = logging.getLogger(__name__)

__all__ = [
    "JSON_ENDINGS", "SAVED_INFO", "SAVED_STATE", "ConcatenatedRecords", "each_once", "files_below", "files_in_folder",
    "has_data_name", "is_beside_saved", "is_pattern", "is_saved_set", "is_there", "matches", "no_match", "saved_files",
]  # fmt: skip

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
SAVED_STATE, SAVED_INFO, SAVED_SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_BESIDE = (SAVED_STATE, SAVED_INFO, SAVED_SPLITS, "dataset_infos.json")
"""Files that the library `datasets` writes beside data."""

_UNFINISHED = (
    *(".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".incomplete", ".inprogress", ".aria2"),
    *(".lock", ".swp", "~"),
)
"""Endings of files that a program still writes, or has beside those that it works on."""

_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "valid": "validation",
    "validation": "validation", "val": "validation", "dev": "validation", "eval": "validation",
}  # fmt: skip


class ConcatenatedRecords:
    """The rows of several files, one file after the other."""

    def __init__(self, sources: Sequence[DataFile]) -> None:
        assert sources
        self._sources = sources
        self._bounds = np.cumsum([0, *map(len, sources)])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(source.fingerprint for source in self._sources).encode()).hexdigest()

    @property
    def kind(self) -> str:
        kinds = dict.fromkeys(source.kind for source in self._sources)
        return f"{len(self._sources):,} files: {', '.join(kinds)}"

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, row: int) -> Any:
        source, place = self._find(row)
        return source[place]

    def where(self, row: int) -> str:
        source, place = self._find(row)
        return source.where(place)

    def _find(self, row: int) -> tuple[DataFile, int]:
        number = int(np.searchsorted(self._bounds, row, side="right")) - 1
        return self._sources[number], row - int(self._bounds[number])


def is_pattern(path: Path) -> bool:
    """Whether a path is no file or folder, but has marks of a pattern: *, ?, [...]."""
    return glob.has_magic(str(path)) and not path.exists()


def is_there(path: Path) -> bool:
    """Whether a path leads somewhere, or is a pattern that does."""
    return path.exists() or (is_pattern(path) and bool(_matching(path)[0]))


def matches(pattern: Path) -> list[Path]:
    """The files and folders that a pattern stands for, by name; `**` goes through folders. Left out are hidden
    and unfinished ones (`.part`, `.tmp`), unless the pattern ends so. A folder may match as well as what is in it.

    Raises: DataError when there are none.
    """
    found, unfinished = _matching(pattern)
    if not found:
        raise DataError(no_match(pattern))
    _say(pattern, unfinished)
    return found


def no_match(pattern: Path) -> str:
    """What is said of a pattern that nothing matches."""
    folder = next((parent for parent in pattern.parents if not glob.has_magic(str(parent))), Path())
    if not folder.is_dir():
        return f"{pattern}: nothing matches this pattern; there is no {folder}"
    seen = shorten(sorted(entry.name for entry in folder.iterdir()), 5)
    return f"{pattern}: nothing matches this pattern; {folder} has {', '.join(seen) or 'nothing'}"


def is_saved_set(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, one data set or several splits."""
    return (folder / SAVED_SPLITS).is_file() or any(folder.glob("*.arrow"))


def saved_files(folder: Path) -> list[Path]:
    """The data files of a `save_to_disk` folder in the order of state.json, by name without it.

    Raises: DataError, also for a folder of splits, which one of them has to be named of.
    """
    if (folder / SAVED_SPLITS).is_file():
        splits = sorted(part.parent.name for part in folder.glob(f"*/{SAVED_STATE}"))
        name = folder / (splits[0] if splits else "train")
        raise DataError(f"{folder}: holds the splits {', '.join(splits) or 'of a data set'}; name one of them: {name}")
    found = sorted(folder.glob("*.arrow"))
    try:
        state = parse_json((folder / SAVED_STATE).read_text("utf-8"))
        files = [folder / Path(file["filename"]).name for file in state["_data_files"]]
        is_reordered = bool(state.get("_indices_data_files"))
    except FileNotFoundError:
        _refuse_splits(folder, found)
        return found
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder / SAVED_STATE}: no list of data files in it; restore it or remove it") from None
    if is_reordered:
        raise DataError(f"{folder}: its rows are chosen by a list of indices; save it again after flatten_indices()")
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder}: {SAVED_STATE} lists {', '.join(missing)}, missing here; copy the whole folder")
    if not files:
        raise DataError(f"{folder}: {SAVED_STATE} lists no data files")
    return files


def files_in_folder(folder: Path) -> list[Path]:
    """The data files in a folder and those below it, by their endings and in the order of their names.

    Raises: DataError when there are none, or they are of several splits.
    """
    inside = files_below(folder)
    found = [file for file in inside if has_data_name(file)]
    if left_out := [str(file.relative_to(folder)) for file in inside if not has_data_name(file)]:
        log.info("%s: not read, by their names: %s", folder, "; ".join(shorten(left_out, 5)))
    if not found:
        known = ", ".join([*JSON_ENDINGS, *delimited.ENDINGS, *columns.ENDINGS])
        seen = ", ".join(file.name for file in inside[:5]) or "nothing"
        raise DataError(
            f"{folder}: a folder without data files ({known}, packed by gzip or zstd, or a meta.bin of the CPM-Bee "
            f"binary form); it has {seen}"
        )
    _refuse_splits(folder, found)
    return found


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and those below it, through links as well, but each folder once; by name. Hidden ones are
    left out, and unfinished ones, which is said.

    Raises: DataError for what cannot be read, a link that leads nowhere and a pipe too: its rows would be missing
    without a word.
    """
    found, seen, unfinished = [], set[str](), []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            if _is_unfinished(path):
                unfinished.append(path)
            elif path.is_symlink() and not path.exists():
                raise DataError(f"{path}: a link that leads nowhere; bring back what it led to, or remove it")
            else:
                check_regular(path, DataError)
                found.append(path)
    _say(folder, unfinished)
    return sorted(found)


def is_beside_saved(file: Path) -> bool:
    """Whether a file only tells the library `datasets` of the data beside it."""
    return file.name == SAVED_SPLITS or (file.name in _BESIDE and any(file.parent.glob("*.arrow")))


def has_data_name(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    ending = name_inside(path).suffix.lower()
    if not ending and name_inside(path) != path:
        return True  # a packed file that keeps its kind to itself
    return path.name not in _BESIDE and ending in (*JSON_ENDINGS, *delimited.ENDINGS, *columns.ENDINGS)


def _splits(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The splits that the names of files tell (`data/train-00000-of-2.parquet`, `test/1.csv`), each with the path or
    pattern that names its files.
    """
    found: dict[str, Path] = {}
    for file in files:
        above = folder
        for part in file.relative_to(folder).parts:
            for word in re.findall(r"[a-z]+", part.lower()):
                if word in _SPLITS:
                    end = part.lower().index(word) + len(word)
                    found.setdefault(_SPLITS[word], above / (part if part != file.name else f"{part[:end]}*"))
            above /= part
    return found


def _refuse_splits(folder: Path, files: Sequence[Path]) -> None:
    """Raises: DataError when files to train on and to test on lie together."""
    if len(splits := _splits(folder, files)) > 1:
        shown = ", ".join(f"{name} ('{path}')" for name, path in sorted(splits.items()))
        raise DataError(f"{folder}: files of several splits lie in it; name those of one: {shown}")


def each_once(paths: Iterable[Path]) -> list[Path]:
    """The files and folders without those that are there already, also by a way through a link to a folder."""
    found: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        # A link to a file has a name of its own; whether a folder is there is not asked by a way of too many links.
        found.setdefault(real if os.path.isdir(real) else os.path.join(os.path.realpath(path.parent), path.name), path)
    return list(found.values())


def _matching(pattern: Path) -> tuple[list[Path], list[Path]]:
    """What a pattern stands for, and the unfinished files that it matches besides; both by name."""
    found = sorted(map(Path, glob.glob(str(pattern.expanduser()), recursive=True)))
    unfinished = [path for path in found if _is_unfinished(path) and not _is_unfinished(pattern)]
    rest = (path for path in found if path not in unfinished and not is_beside_saved(path))
    return sorted(each_once(sorted(rest, key=lambda path: len(path.parts)))), unfinished


def _is_unfinished(path: Path) -> bool:
    return path.name.lower().endswith(_UNFINISHED)


def _say(place: Path, unfinished: Sequence[Path]) -> None:
    if unfinished:
        names = "; ".join(shorten(list(map(str, unfinished)), 5))
        log.warning("%s: not read, as unfinished by their names: %s", place, names)


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(explain(error, Path(error.filename), "read"))
