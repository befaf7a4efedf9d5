"""`meta.bin`, the list of a data set's files."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file
from hanlin.data.sources.jsonl import parse_row

META = "meta.bin"
BLOCK_BYTES = 16 << 20  # the original's default
HEAD = struct.Struct("<BI")  # of a record: its marker and its size


@dataclass(frozen=True)
class BeeFile:
    """One line of `meta.bin`, in its words. nbytes: 4 + payload over all rows; mask: the file is to be skipped."""

    file_name: str
    block_begin: int
    block_end: int
    nbytes: int
    nlines: int
    mask: bool = False
    block_size: int = BLOCK_BYTES

    @property
    def num_blocks(self) -> int:
        return self.block_end - self.block_begin


def read_meta(folder: Path) -> list[BeeFile]:
    """The data files of a data set; none when there is no `meta.bin`.

    Raises: DataError.
    """
    path = folder / META
    if not path.exists():
        return []
    files = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            files.append(_parse_meta_line(line, f"{path}:{number}"))
    end = 0
    for file in files:
        if file.block_begin != end:
            raise DataError(f"{path}: {file.file_name} begins at block {file.block_begin}, expected {end}")
        end = file.block_end
    return files


def write_meta(folder: Path, files: Sequence[BeeFile]) -> None:
    with replaced_file(folder / META) as stream:
        for file in files:
            stream.write(json.dumps(asdict(file)).encode() + b"\n")


def _parse_meta_line(line: bytes, where: str) -> BeeFile:
    try:
        values = parse_row(line)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    names = {field.name for field in fields(BeeFile)}
    if set(values) - names or names - set(values) - {"mask", "block_size"}:
        raise DataError(f"{where}: expected the keys {', '.join(sorted(names))}; found {', '.join(sorted(values))}")
    numbers = [values[name] for name in names & set(values) - {"file_name", "mask"}]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(values["file_name"], str):
        raise DataError(f"{where}: file_name must be a string and the counts whole numbers")
    file = BeeFile(**values)
    if file.num_blocks < 0 or file.block_size <= HEAD.size or Path(file.file_name).name != file.file_name:
        raise DataError(f"{where}: impossible blocks, block size or file name")
    return file
