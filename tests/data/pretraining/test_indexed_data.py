"""Megatron's indexed data: what is written is read, in both forms; merging; damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hanlin.core.errors import DataError
from hanlin.data.pretraining.indexed_data import IndexedData, IndexForm, indexed_file, merge_indexed, written_index

ITEMS = [[1, 2, 3], [], [4], [5, 6]]


def write(prefix: Path, form: IndexForm = "mmap", vocab_size: int | None = 100, items: list[list[int]] = ITEMS) -> Path:
    with written_index(prefix, form, vocab_size) as writer:
        for item in items:
            writer.add(item)
            writer.end_document()
    return prefix


@pytest.mark.parametrize("form", ["mmap", "cached"])
def test_what_was_written_is_read(tmp_path: Path, form: IndexForm) -> None:
    data = IndexedData(write(tmp_path / "some.data", form))
    assert data.index.form == form
    assert [data[i].tolist() for i in range(len(data))] == ITEMS
    assert data.index.documents.tolist() == [0, 1, 2, 3, 4]
    assert data.get(0, 1, 1).tolist() == [2]


def test_data_without_items_are_read(tmp_path: Path) -> None:
    assert len(IndexedData(write(tmp_path / "empty", items=[]))) == 0


@pytest.mark.parametrize("form", ["mmap", "cached"])
def test_merged_data_hold_all_items_and_documents(tmp_path: Path, form: IndexForm) -> None:
    parts = [write(tmp_path / name, form) for name in "ab"]
    merge_indexed(parts, tmp_path / "both", form)
    twice = write(tmp_path / "twice", form, items=ITEMS * 2)
    for ending in ("bin", "idx"):
        assert indexed_file(tmp_path / "both", ending).read_bytes() == indexed_file(twice, ending).read_bytes()


def test_data_of_two_dtypes_are_not_merged(tmp_path: Path) -> None:
    parts = [write(tmp_path / "narrow"), write(tmp_path / "wide", vocab_size=70_000)]
    with pytest.raises(DataError, match="wide: holds int32, the others uint16"):
        merge_indexed(parts, tmp_path / "both")
    assert not indexed_file(tmp_path / "both", "idx").exists()


def test_an_id_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item 0: an id from 70000 to 70000 is no uint16"):
        write(tmp_path / "data", items=[[70_000]])
    assert not list(tmp_path.iterdir())


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    prefix = write(tmp_path / "data")
    index, tokens = indexed_file(prefix, "idx"), indexed_file(prefix, "bin")
    whole = index.read_bytes()
    index.write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"data\.idx: damaged or cut off"):
        IndexedData(prefix)
    index.write_bytes(whole)
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"data\.bin: 10 bytes, its index speaks of 12"):
        IndexedData(prefix)
    index.write_bytes(b"no index")
    with pytest.raises(DataError, match="no index of Megatron's"):
        IndexedData(prefix)


def test_items_of_merged_files_with_gaps_are_kept(tmp_path: Path) -> None:
    prefix = write(tmp_path / "data", items=[[1, 2], [3]])
    index = indexed_file(prefix, "idx")
    content = bytearray(index.read_bytes())
    # The second item now lies one token further: 34 bytes of head, 2 sizes, then the places in bytes.
    content[34 + 8 + 8 : 34 + 8 + 16] = np.array([6], "<i8").tobytes()
    index.write_bytes(content)
    tokens = indexed_file(prefix, "bin")
    tokens.write_bytes(np.array([1, 2, 0, 3], "<u2").tobytes())
    merge_indexed([prefix], tmp_path / "whole")
    assert [IndexedData(tmp_path / "whole")[i].tolist() for i in range(2)] == [[1, 2], [3]]
