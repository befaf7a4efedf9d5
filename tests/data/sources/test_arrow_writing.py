"""Folders of rows of ids: what is written is read back, and is what the library's own files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hanlin.core.errors import CheckpointError, DataError
from hanlin.data.sources import arrow_writing, open_records
from hanlin.data.sources.arrow_writing import write_arrow


def make_rows(count: int) -> list[dict[str, list[int]]]:
    draw = np.random.default_rng(0)
    sizes = draw.integers(0, 30, count)
    return [
        {"input_ids": draw.integers(0, 2**40, n).tolist(), "labels": draw.integers(-100, 9, n).tolist()} for n in sizes
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    source = open_records(folder)
    return [source[row] for row in range(len(source))]


@pytest.mark.parametrize(("count", "file_bytes"), [(1, 1 << 20), (2500, 1 << 20), (2500, 1)])
def test_rows_are_read_back(count: int, file_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_writing, "_FILE_BYTES", file_bytes)
    rows, folder = make_rows(count), tmp_path / "train_datasets"
    assert write_arrow(folder, iter(rows)) == count
    assert read(folder) == rows
    files = 3 if file_bytes == 1 and count > 1000 else 1
    assert len([*folder.glob(f"data-*-of-{files:05d}.arrow")]) == files
    about = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    assert list(about["features"]) == ["input_ids", "labels"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def rows():
        yield from make_rows(2)
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        write_arrow(tmp_path / "a", rows())
    with pytest.raises(DataError, match="there are no rows to write"):
        write_arrow(tmp_path / "a", iter([]))
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    write_arrow(tmp_path / "a", make_rows(2))
    with pytest.raises(CheckpointError, match="exists already"):
        write_arrow(tmp_path / "a", make_rows(2))


def test_a_published_data_set_is_the_same_written_again(shared: Path, tmp_path: Path) -> None:
    original = next((shared / "golden" / "chatglm2_arrow").glob("*/"))
    write_arrow(tmp_path / "again", read(original))
    assert read(tmp_path / "again") == read(original)
    schemas = []
    for folder in (tmp_path / "again", original):
        with pa.ipc.open_stream(min(folder.glob("*.arrow"))) as stream:
            schemas.append({field.name: (field.type.id, field.type.value_type) for field in stream.schema})
    assert {name: kind for name, (kind, _) in schemas[0].items()} == dict.fromkeys(schemas[1], pa.lib.Type_LIST)
