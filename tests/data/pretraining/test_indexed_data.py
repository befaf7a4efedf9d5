"""Megatron's indexed data: what is written is read, in both forms; merging; damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hanlin.core.errors import DataError
from hanlin.data.pretraining.indexed_data import (
    IndexedData,
    IndexForm,
    indexed_file,
    merge_indexed,
    shuffle_indexed,
    written_index,
)

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


HEAD, ENTRY = 34, 8  # bytes of the head of an index, and of its entries behind the 4 sizes of 4 bytes


@pytest.mark.parametrize(
    ("place", "content", "said"),
    [
        (17, np.array([4], "u1"), "in the middle of an id of 4 bytes, int32"),
        (17, np.array([7], "u1"), "the dtype is float64, ids of tokens are whole numbers"),
        (HEAD, np.array([-3], "<i4"), "item 0 is said to have -3 tokens"),
        (HEAD, np.array([2], "<i4"), "item 1 is said to begin at token 3, the items before it have 2"),
        (HEAD + 16 + 16, np.array([4], "<i8"), "item 2 is said to begin at token 2, the items before it have 3"),
        (HEAD + 16 + 16, np.array([7], "<i8"), "in the middle of an id of 2 bytes, uint16"),
        (HEAD + 16 + 32, np.array([1], "<i8"), "the documents do not divide the 4 items"),
        (HEAD + 16 + 32 + 8, np.array([3], "<i8"), "the documents do not divide the 4 items"),
        (HEAD + 16 + 32 + 32, np.array([9], "<i8"), "the documents do not divide the 4 items"),
        (9 + 8 + 1, np.array([2**64 - 1], "<u8"), "damaged or cut off"),
        (HEAD + 16 + 32 + 40, np.array([0], "<i8"), "8 bytes follow its tables"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    tmp_path: Path, place: int, content: np.ndarray, said: str
) -> None:
    prefix = write(tmp_path / "data")
    index = indexed_file(prefix, "idx")
    damaged = bytearray(index.read_bytes())
    damaged[place : place + content.nbytes] = content.tobytes()
    index.write_bytes(damaged)
    with pytest.raises(DataError, match=said):
        IndexedData(prefix)


def test_the_older_form_is_held_to_the_same(tmp_path: Path) -> None:
    prefix = write(tmp_path / "data", "cached")
    index = indexed_file(prefix, "idx")
    whole = index.read_bytes()
    for place in range(56, len(whole), 8):
        damaged = bytearray(whole)
        damaged[place] ^= 2
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=r"data\.idx: damaged or cut off"):
            IndexedData(prefix)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [("<i4", "24 bytes, its index speaks of 12: the ids are likely int32, the index says uint16"), ("<i8", "int64")],
)
def test_the_likely_dtype_of_the_bytes_is_named(tmp_path: Path, dtype: str, said: str) -> None:
    prefix = write(tmp_path / "data")
    indexed_file(prefix, "bin").write_bytes(np.arange(6).astype(dtype).tobytes())
    with pytest.raises(DataError, match=said):
        IndexedData(prefix)
    wide = write(tmp_path / "wide", vocab_size=None)
    indexed_file(wide, "bin").write_bytes(bytes(12))
    with pytest.raises(DataError, match="12 bytes, its index speaks of 24: the ids are likely uint16, the index says"):
        IndexedData(wide)
    indexed_file(wide, "bin").write_bytes(bytes(28))
    with pytest.raises(DataError, match="28 bytes, its index speaks of 24: the rest would never be read"):
        IndexedData(wide)


def test_without_ends_of_documents_each_item_is_one(tmp_path: Path) -> None:
    """As the original's merging leaves it."""
    with written_index(tmp_path / "merged", vocab_size=100) as writer:
        for item in ITEMS:
            writer.add(item)
    shuffle_indexed([tmp_path / "merged"], tmp_path / "shuffled", 0)
    data = IndexedData(tmp_path / "shuffled")
    assert sorted(data[i].tolist() for i in range(len(data))) == sorted(ITEMS)
    assert len(data.documents) == 5


def test_a_file_that_becomes_shorter_while_it_is_read_ends_in_a_message(tmp_path: Path) -> None:
    data = IndexedData(write(tmp_path / "data"))
    indexed_file(data.prefix, "bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.bin: became shorter while it was in use: 0 bytes, there were 12"):
        data[0]
