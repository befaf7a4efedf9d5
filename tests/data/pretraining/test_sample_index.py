"""Samples cut from documents: every token of an epoch in order, one shared between neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hanlin.core.errors import ConfigError, DataError
from hanlin.data.pretraining.indexed_data import IndexedData, written_index
from hanlin.data.pretraining.sample_index import build_index, split_bounds, split_documents


def test_samples_in_their_place_are_the_documents_one_after_another(tmp_path: Path) -> None:
    items = [[1, 2, 3, 4], [], [5], [6, 7, 8, 9, 10]]
    with written_index(tmp_path / "data", vocab_size=20) as writer:
        for item in items:
            writer.add(item)
    data = IndexedData(tmp_path / "data")
    index = build_index(data.sizes, range(4), 9, 3, seed=7)
    assert len(index) == 9  # three times ten tokens: (30 - 1) // 3
    stream = [token for item in index.documents for token in items[item]]
    by_place = {int(place): index.tokens(number, data).tolist() for number, place in enumerate(index.order)}
    assert [by_place[place] for place in range(9)] == [stream[3 * place : 3 * place + 4] for place in range(9)]


def test_a_split_without_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match="no tokens in this split"):
        build_index(np.array([3, 0]), range(1, 2), 1, 4, seed=0)


def test_bounds_keep_the_original_rounding_but_are_not_used_when_impossible() -> None:
    assert split_bounds("0,1,1", 3) == [0, -1, 1, 3]
    with pytest.raises(ConfigError, match="cannot divide 3 documents"):
        split_documents("0,1,1", 3)
    assert split_documents("8,1,1", 10) == {"train": range(8), "valid": range(8, 9), "test": range(9, 10)}


@pytest.mark.parametrize("split", ["a,b", "", "0,0,0", "2,-1"])
def test_what_is_no_split_is_an_error(split: str) -> None:
    with pytest.raises(ConfigError, match="split"):
        split_bounds(split, 10)
