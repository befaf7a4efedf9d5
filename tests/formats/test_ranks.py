"""Files of model-parallel ranks: merged and divided without a change, damaged or hostile ones refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.files import open_weights
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
    second = RankWeights(find_ranks(tmp_path / "new")[1:], {}, whole=False)
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


def test_a_set_of_which_only_some_files_are_there_is_named(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2)
    (tmp_path / "new" / "1" / "mp_rank_01_model_states.pt").rename(tmp_path / "second.pt")
    with pytest.raises(CheckpointError, match=r"one of 2 files .* only 1 is there: mp_rank_01_model_states\.pt"):
        RankWeights(find_ranks(tmp_path / "new"), PARTITIONS)
    with pytest.raises(CheckpointError, match=r"second\.pt: holds the share of one of 2 model-parallel ranks"):
        open_weights(tmp_path / "second.pt")


def test_numbers_that_no_set_has_are_not_counted_up_to(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2)
    files = find_ranks(tmp_path / "new")
    for file in files:
        change(file, mp_world_size=10**10)
    with pytest.raises(
        CheckpointError, match=r"one of 10000000000 files .*mp_rank_06_model_states\.pt, \.\.\. missing"
    ):
        RankWeights(files, PARTITIONS)
    files[1].rename(files[1].with_name("mp_rank_9999999999_model_states.pt"))
    with pytest.raises(CheckpointError, match=r"mp_rank_05_model_states\.pt, \.\.\. missing"):
        find_ranks(tmp_path / "new")


def change(file: Path, **changes: object) -> None:
    torch.save({**torch.load(file, weights_only=False), **changes}, file)


def test_files_of_different_checkpoints_are_not_merged(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2, iteration=7)
    files = find_ranks(tmp_path / "new")
    change(files[1], iteration=8)
    with pytest.raises(CheckpointError, match=r"iteration 7 in .*mp_rank_00.*, 8 in .*mp_rank_01"):
        RankWeights(files, PARTITIONS)
    change(files[1], iteration=7, module={**torch.load(files[0])["module"], "plain": torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match=r"mp_rank_01.*: plain is \[3, 2\], but \[2, 2\] in .*mp_rank_00"):
        RankWeights(files, PARTITIONS)
    for file in files:
        change(file, mp_world_size=1)
    with pytest.raises(CheckpointError, match="is one of 1 that belong together, as it says itself, but 2 files lie"):
        RankWeights(files, PARTITIONS)


def test_forgetting_what_cannot_be_mapped_loses_nothing(tmp_path: Path) -> None:
    large = torch.arange(100_000.0)
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {"large": large}}, file, _use_new_zipfile_serialization=False)
    weights = RankWeights([file], {})
    weights.forget("large")
    assert weights["large"].equal(large)


def lying_in(folder: Path, *parts: str) -> Path:
    """A set of two files in a folder of its own below, without a tracker file."""
    write_ranks(folder / "written", TENSORS, PARTITIONS, 2)
    inner = folder.joinpath("there", *parts)
    inner.parent.mkdir(parents=True, exist_ok=True)
    (folder / "written" / "1").rename(inner)
    return folder / "there"


@pytest.mark.parametrize("parts", [["80000"], ["80000", "80000"]])
def test_a_folder_without_a_tracker_says_where_the_files_lie(tmp_path: Path, parts: list[str]) -> None:
    there = lying_in(tmp_path, *parts)
    where = "/".join(parts)
    told = rf"weights lie in {where}/ \(files of model-parallel ranks: 2\); .* hanlin inspect {there}/{where}$"
    with pytest.raises(CheckpointError, match=told):
        open_weights(there)


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("", "iteration.txt: it is empty; weights lie in 80000/"),
        ("90000\n", "it names the folder '90000', which is not there; weights lie in 80000/"),
        ("logs", "the folder 'logs' has no such files as it names; weights lie in 80000/"),
        ("x" * 5000, "which is not there; weights"),
    ],
)
def test_a_tracker_that_leads_nowhere_is_told_with_the_way_out(tmp_path: Path, tag: str, told: str) -> None:
    there = lying_in(tmp_path, "80000")
    (there / "logs").mkdir()
    (there / "latest_checkpointed_iteration.txt").write_text(tag)
    with pytest.raises(CheckpointError, match=told):
        find_ranks(there)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", r"holds only ZeRO's states of the optimizer .* copy these"),
        ("zero_pp_rank_1_mp_rank_00optim_states.pt", r"holds only ZeRO's states of the optimizer"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", r"shares of ZeRO's third stage .* python zero_to_fp32\.py"),
    ],
)
@pytest.mark.parametrize("inner", [".", "global_step3"])
def test_what_zero_leaves_is_no_weights_and_is_told_so(tmp_path: Path, name: str, told: str, inner: str) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    torch.save({"optimizer_state_dict": {}}, tmp_path / inner / name)
    torch.save({"optimizer_state_dict": {}}, tmp_path / inner / name.replace("rank_0_", "rank_7_"))
    with pytest.raises(CheckpointError, match=told):
        open_weights(tmp_path)


def test_weights_of_the_usual_name_win_over_what_is_kept_to_go_on(tmp_path: Path) -> None:
    write_ranks(tmp_path, TENSORS, PARTITIONS, 1)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert find_ranks(tmp_path) == []
    assert open_weights(tmp_path)["norm"].equal(TENSORS["norm"])


def test_several_files_of_weights_are_named(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several could be meant: a\.pt, b\.pt; name one of them"):
        open_weights(tmp_path)


def test_files_written_without_deepspeed_are_the_same_set(tmp_path: Path) -> None:
    write_ranks(tmp_path / "new", TENSORS, PARTITIONS, 2, iteration=7)
    for rank, file in enumerate(find_ranks(tmp_path / "new")):
        place = tmp_path / "plain" / "iter_0000007" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        place.parent.mkdir(parents=True)
        torch.save({"iteration": 7, "model": torch.load(file)["module"]}, place)
    (tmp_path / "plain" / "latest_checkpointed_iteration.txt").write_text("7")
    inner = tmp_path / "plain" / "iter_0000007"
    for path in (tmp_path / "plain", inner, inner / "mp_rank_01" / "model_optim_rng.pt"):
        weights = RankWeights(find_ranks(path), PARTITIONS)
        assert (len(weights.files), weights.iteration) == (2, 7)
        torch.testing.assert_close(dict(weights), TENSORS, rtol=0, atol=0)
    (inner / "mp_rank_00" / "model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_00/model_optim_rng\.pt missing"):
        find_ranks(inner)
