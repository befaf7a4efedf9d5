"""Whole data sets: shuffled, merged, files left out or forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file

from .blocks import open_file
from .meta import BeeFile, read_meta, write_meta
from .reading import BeeSource
from .writing import write_bee


def shuffle_bee(source: Path, target: Path, name: str, *, seed: int, block_bytes: int | None = None) -> BeeFile:
    """Write the rows of a data set in random order, as one file `name` of another data set."""
    rows = BeeSource(source)
    order = np.random.default_rng(seed).permutation(len(rows))
    return write_bee(target, name, (rows[row] for row in order), block_bytes=block_bytes, form="pickle")


def mask_bee(folder: Path, name: str, *, masked: bool = True) -> None:
    """Leave a file of the data set out of reading, or take it in again."""
    files = read_meta(folder)
    if not any(file.file_name == name for file in files):
        raise DataError(
            f"{folder}: no file {name!r}; there are: {', '.join(file.file_name for file in files) or 'none'}"
        )
    write_meta(folder, [replace(file, mask=masked) if file.file_name == name else file for file in files])


def compact_bee(folder: Path) -> list[str]:
    """Drop the entries of files that were deleted; returns their names."""
    files = read_meta(folder)
    kept = [file for file in files if (folder / file.file_name).is_file()]
    write_meta(folder, _renumber(kept))
    return [file.file_name for file in files if file not in kept]


def merge_bee(target: Path, source: Path) -> list[str]:
    """Copy the files of one data set into another; a taken name gets `_0`, `_1`, ...; returns the names."""
    files, names = read_meta(target), []
    for file in read_meta(source):
        name = _free_name(target, file.file_name, files)
        with replaced_file(target / name) as stream:
            for chunk in open_file(source, file).chunks():
                stream.write(chunk)
        files = _renumber([*files, replace(file, file_name=name)])
        write_meta(target, files)
        names.append(name)
    return names


def _free_name(folder: Path, name: str, files: Sequence[BeeFile]) -> str:
    taken = {file.file_name for file in files}
    candidates = [name, *(f"{name}_{number}" for number in range(len(files) + 1))]
    return next(found for found in candidates if found not in taken and not (folder / found).exists())


def _renumber(files: Sequence[BeeFile]) -> list[BeeFile]:
    begin, numbered = 0, []
    for file in files:
        numbered.append(replace(file, block_begin=begin, block_end=begin + file.num_blocks))
        begin = numbered[-1].block_end
    return numbered
