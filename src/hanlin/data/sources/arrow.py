"""Folders that the `datasets` library wrote with `save_to_disk`: rows of ids that were tokenised before.

Only columns of lists of whole numbers are read. The files are not loaded: a row is read when it is asked for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.json_text import parse_json
from hanlin.data.file_array import FileBytes
from hanlin.data.sources.arrow_stream import read_parts
from hanlin.data.sources.records import BadRowError

STATE = "state.json"


class ArrowSource:
    """The rows of a `save_to_disk` folder, file after file; a row is a dict of int arrays."""

    def __init__(self, folder: Path) -> None:
        """Raises: DataError."""
        self.path = folder
        self._contents = {path: _open(path) for path in _files(folder)}
        self._parts = [part for path, data in self._contents.items() for part in read_parts(path, data)]
        sizes = [len(next(iter(part.columns.values()))[0]) - 1 for part in self._parts]
        self._bounds = np.cumsum([0, *sizes])
        if len(self) == 0:
            raise DataError(f"{folder}: the data set holds no rows")

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for data in self._contents.values():
            for chunk in data.chunks():
                digest.update(chunk)
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        number, place = self._place(row)
        record = {}
        for name, (bounds, values) in self._parts[number].columns.items():
            start, end = int(bounds[place]), int(bounds[place + 1])
            if not 0 <= start <= end <= len(values):
                raise BadRowError(self.where(row), f'"{name}" lies outside the file; it is damaged')
            record[name] = values[start:end]
        return record

    def where(self, row: int) -> str:
        number, place = self._place(row)
        return f"{self._parts[number].file}: row {self._parts[number].first + place + 1}"

    def _place(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._bounds, row, side="right")) - 1
        return number, row - int(self._bounds[number])


def is_arrow_folder(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any(folder.glob("*.arrow"))


def _files(folder: Path) -> list[Path]:
    """The data files in the order of state.json, by name without it."""
    found = sorted(folder.glob("*.arrow"))
    try:
        listed = parse_json((folder / STATE).read_text("utf-8"))["_data_files"]
        files = [folder / Path(file["filename"]).name for file in listed]
    except FileNotFoundError:
        files = found
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder / STATE}: no list of data files in it; restore it or remove it") from None
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder}: {STATE} lists {', '.join(missing)}, missing here; copy the whole folder")
    if not files:
        raise DataError(f"{folder}: no .arrow files; expected a folder of the datasets library's save_to_disk")
    return files


def _open(path: Path) -> FileBytes:
    found = FileBytes(path)
    if len(found) == 0:
        raise DataError(f"{path}: the file is empty; copy it again")
    return found
