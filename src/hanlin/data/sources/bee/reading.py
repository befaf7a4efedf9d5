"""The rows of a data set: by number, and in the order of the original program."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.errors import DataError
from hanlin.data.file_array import FileBytes
from hanlin.data.sources.records import BadRowError

from .blocks import open_file, records
from .meta import HEAD, META, BeeFile, read_meta
from .payload import read_payload


class BeeSource:
    """The rows of all files that are not masked, file after file."""

    kind = "CPM-Bee's binary form"

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files = [file for file in read_meta(folder) if not file.mask]
        self._contents = [open_file(folder, file) for file in self._files]
        places = [_find_records(folder, file, data) for file, data in zip(self._files, self._contents, strict=True)]
        self._bounds = np.cumsum([0, *(len(found) for found in places)])
        self._places = np.concatenate([np.zeros((0, 2), np.int64), *places])
        if len(self) == 0:
            raise DataError(f"{folder}: the data set holds no rows")

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file, data in zip(self._files, self._contents, strict=True):
            digest.update(json.dumps(asdict(file)).encode())
            for chunk in data.chunks():
                digest.update(chunk)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, size = (int(value) for value in self._places[row])
        try:
            record = read_payload(self._contents[self._file_of(row)][start : start + size])
        except ValueError as error:
            raise BadRowError(self.where(row), str(error)) from None
        if not isinstance(record, dict):
            raise BadRowError(self.where(row), f"expected a dict, found {type(record).__name__}")
        return record

    def where(self, row: int) -> str:
        number = self._file_of(row)
        file, start = self._files[number], int(self._places[row, 0]) - HEAD.size
        place = f"block {file.block_begin + start // file.block_size}, offset {start % file.block_size}"
        return f"{self.path / file.file_name}:{row - self._bounds[number] + 1} ({place})"

    def _file_of(self, row: int) -> int:
        return int(np.searchsorted(self._bounds, row, side="right")) - 1


def _find_records(folder: Path, file: BeeFile, data: FileBytes) -> np.ndarray:
    """`[rows, 2]`: where each payload starts in the file, and its size."""
    found = []
    for block in range(file.num_blocks):
        base = block * file.block_size
        for start, size in records(data[base : base + file.block_size], f"{folder / file.file_name}", file, block):
            found.append((base + start, size))
    if len(found) != file.nlines:
        raise DataError(f"{folder / file.file_name}: {len(found)} rows, {META} says {file.nlines}; the file is damaged")
    return np.array(found, np.int64).reshape(-1, 2)


class BeeReader:
    """Rows in the order of the original program, for one rank, with its resume state.

    # kept: blocks are taken from the END of the list, so without shuffling the last block comes first (bee_dataset).

    shuffle: the generator that shuffles the list of blocks, None leaves it; repeats: passes over the data, None: no
        end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: random.Random | None = None,
        repeats: int | None = 1,
    ) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._shuffle, self._repeats = shuffle, repeats
        self._files = [file for file in read_meta(folder) if not file.mask]
        self._unread: list[int] = []
        self._passes = 0
        self._block: int | None = None
        self._offset = 0

    def __iter__(self) -> Iterator[Any]:
        while self._open_block():
            assert self._block is not None
            file = self._file_of(self._block)
            number = self._block - file.block_begin
            block = open_file(self._folder, file)[number * file.block_size : (number + 1) * file.block_size]
            path = f"{self._folder / file.file_name}"
            for start, size in records(block, path, file, number, self._offset):
                self._offset = start + size
                try:
                    value = read_payload(block[start : start + size])
                except ValueError as error:
                    raise BadRowError(f"{path}: block {self._block}, offset {start - HEAD.size}", str(error)) from None
                yield value
            self._block = None

    def state_dict(self) -> dict[str, Any]:
        """In the words of the original, for this rank: unread blocks, and [block or -1, offset, unread, passes]."""
        block = -1 if self._block is None else self._block
        offset = 0 if self._block is None else self._offset
        return {"states": list(self._unread), "block": [block, offset, len(self._unread), self._passes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        block, offset, num_unread, self._passes = state["block"]
        self._unread = list(state["states"][:num_unread])
        self._block, self._offset = (None, 0) if block < 0 else (block, offset)

    def _open_block(self) -> bool:
        if self._block is not None:
            return True
        if not self._unread and not self._start_pass():
            return False
        self._block, self._offset = self._unread.pop(), 0
        return True

    def _start_pass(self) -> bool:
        if self._repeats is not None and self._passes >= self._repeats:
            return False
        blocks = [block for file in self._files for block in range(file.block_begin, file.block_end)]
        self._unread = [block for block in blocks if block % self._world == self._rank]
        if not self._unread:
            raise DataError(f"{self._folder}: {len(blocks)} blocks, none for rank {self._rank} of {self._world}")
        if self._shuffle is not None:
            self._shuffle.shuffle(self._unread)
        self._passes += 1
        return True

    def _file_of(self, block: int) -> BeeFile:
        return next(file for file in self._files if file.block_begin <= block < file.block_end)
