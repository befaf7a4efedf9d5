"""Writes a folder as the `datasets` library's save_to_disk does, with columns of lists of int64; needs pyarrow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import published, write_json
from hanlin.data.sources.columns import need_pyarrow
from hanlin.data.sources.several import SAVED_INFO, SAVED_STATE

__all__ = ["write_arrow"]

RowOfIds = Mapping[str, Sequence[int]]

_BATCH_ROWS, _FILE_BYTES = 1000, 500 << 20


def write_arrow(folder: Path, rows: Iterable[RowOfIds]) -> int:
    """Write rows of equal keys as a new folder, which appears whole or not at all. Returns the number of rows.

    Raises: CheckpointError when the folder is there already, DataError when there are no rows, or no pyarrow.
    """
    arrow, batches = need_pyarrow(folder), _batches(iter(rows))
    count, files = 0, 0
    with published(folder) as private:
        private.mkdir()
        batch = next(batches, None)
        if batch is None:
            raise DataError(f"{folder}: there are no rows to write")
        schema = arrow.schema([(name, arrow.list_(arrow.int64())) for name in batch[0]])
        while batch is not None:
            with (private / f"{files}.arrow").open("xb") as file, arrow.ipc.new_stream(file, schema) as stream:
                end = file.tell() + _FILE_BYTES
                while batch is not None and file.tell() < end:
                    stream.write_batch(_table(arrow, schema, batch))
                    count += len(batch)
                    batch = next(batches, None)
            files += 1
        _name_files(private, files, schema.names)
    return count


def _table(arrow: Any, schema: Any, rows: Sequence[RowOfIds]) -> Any:
    columns = [arrow.array([row[field.name] for row in rows], field.type) for field in schema]
    return arrow.record_batch(columns, schema=schema)


def _name_files(folder: Path, count: int, names: Sequence[str]) -> None:
    """Give the files their names, which hold their number, and write what the library wants to know beside them."""
    listed, digest = [], hashlib.sha256()
    for number in range(count):
        name = f"data-{number:05d}-of-{count:05d}.arrow"
        (folder / f"{number}.arrow").rename(folder / name)
        listed.append({"filename": name})
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    value = {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "Sequence"}
    about = {"citation": "", "description": "", "homepage": "", "license": ""}
    write_json(folder / SAVED_INFO, {**about, "features": dict.fromkeys(names, value)})
    state = {
        "_data_files": listed,
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
    }
    write_json(folder / SAVED_STATE, {**state, "_format_type": None, "_output_all_columns": False, "_split": None})


def _batches(rows: Iterator[RowOfIds]) -> Iterator[list[RowOfIds]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch
