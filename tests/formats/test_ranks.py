"""Files of model-parallel ranks: merged and divided without a change, damaged or hostile ones refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.ranks import Partition, RankWeights, find_ranks, write_ranks

PARTITIONS = {"fused": Partition(parts=3), "down": Partition(dim=1), "plain": Partition()}
TENSORS = {
    "fused": torch.arange(48.0).reshape(12, 4),
    "down": torch.arange(24.0).reshape(3, 8),
    "plain": torch.arange(8.0).reshape(4, 2),
    "norm": torch.ones(3),
}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_is_divided_is_merged_again(tmp_path: Path, ranks: int) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, ranks, iteration=7)
    files = find_ranks(tmp_path / "new")
    assert [file.name for file in files] == [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks)]
    torch.testing.assert_close(dict(RankWeights(files, PARTITIONS)), TENSORS, rtol=0, atol=0)


def test_a_rank_holds_its_rows_of_every_fused_part(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2)
    second = RankWeights(find_ranks(tmp_path / "new")[1:], {})
    assert second["fused"].equal(TENSORS["fused"][[2, 3, 6, 7, 10, 11]])


def test_an_uneven_division_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="fused: 12 along dim 0 is no multiple of 3 x 3 ranks"):
        write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 3)


def test_a_missing_rank_and_a_wrong_tracker_are_named(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2)
    (tmp_path / "new" / "1" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt missing"):
        find_ranks(tmp_path / "new")
    (tmp_path / "new" / "latest_checkpointed_iteration.txt").write_text("200\n")
    with pytest.raises(CheckpointError, match="'200', which is not there"):
        find_ranks(tmp_path / "new")


def test_copies_that_differ_are_named(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2)
    second = find_ranks(tmp_path / "new")[1]
    content = torch.load(second)
    content["module"]["norm"] += 1
    torch.save(content, second)
    with pytest.raises(CheckpointError, match="norm must be the same on all ranks"):
        RankWeights(find_ranks(tmp_path / "new"), PARTITIONS)["norm"]


def test_a_file_that_would_run_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"module": TENSORS, "optimizer": Hostile()}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="mkdir"):
        RankWeights(find_ranks(tmp_path), PARTITIONS)
    assert not (tmp_path / "ran").exists()
