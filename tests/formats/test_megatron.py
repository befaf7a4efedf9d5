"""Megatron's files: orders of fused rows, padding of the vocabulary, and what is named when files are missing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.megatron import FORMS, MegatronForm, open_megatron, write_megatron
from hanlin.formats.ranks import Partition

HEADS, HEAD_DIM, RANKS = 4, 3, 2
FUSED = "language_model.transformer.layers.0.attention.query_key_value.weight"
WORDS = "language_model.embedding.word_embeddings.weight"
PARTITIONS = {"query_key_value.weight": Partition(), "word_embeddings.weight": Partition()}
PARTS = {"query_key_value.weight": 3}


def write_version(folder: Path, version: float | None, shards: list[torch.Tensor]) -> None:
    for rank, shard in enumerate(shards):
        model = {"language_model": {"transformer": {FUSED.removeprefix("language_model.transformer."): shard}}}
        state: dict[str, Any] = {"args": argparse.Namespace(num_attention_heads=HEADS), "model": model}
        file = folder / "release" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        torch.save(state if version is None else {**state, "checkpoint_version": version}, file)
    (folder / "latest_checkpointed_iteration.txt").write_text("release\n")


@pytest.mark.parametrize(("version", "order"), [(2.0, "hpd"), (1.0, "hdp"), (0, "phd"), (None, "phd")])
def test_fused_rows_of_every_version_come_in_one_order(tmp_path: Path, version: float | None, order: str) -> None:
    rows = torch.arange(HEADS * 3 * HEAD_DIM).view(HEADS, 3, HEAD_DIM)  # heads, parts, head_dim
    axes = [{"h": 0, "p": 1, "d": 2}[letter] for letter in order]
    shards = [share.permute(axes).flatten()[:, None] for share in rows.chunk(RANKS)]
    write_version(tmp_path, version, shards)
    weights = open_megatron(tmp_path, PARTITIONS, PARTS)
    assert weights is not None
    assert weights[FUSED].flatten().equal(rows.flatten())


def test_the_vocabulary_is_filled_up_for_the_ranks(tmp_path: Path) -> None:
    words = torch.ones(117, 2)
    write_megatron(tmp_path, {WORDS: words}, PARTITIONS, {"make_vocab_size_divisible_by": 16}, ranks=RANKS)
    weights = open_megatron(tmp_path, PARTITIONS, PARTS)
    assert weights is not None
    assert (weights.arguments["padded_vocab_size"], len(weights[WORDS])) == (128, 128)
    assert weights[WORDS][:117].equal(words)
    assert not weights[WORDS][117:].any()


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    write_version(tmp_path, 2.0, [torch.zeros(6, 1)] * 2)
    (tmp_path / "release" / "mp_rank_00" / "model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match="nothing of tensor rank 0"):
        open_megatron(tmp_path, PARTITIONS, PARTS)


def test_files_of_another_program_are_left_to_others(tmp_path: Path) -> None:
    assert open_megatron(tmp_path, PARTITIONS, PARTS) is None
    (tmp_path / "80000").mkdir()
    torch.save({"module": {"word_embeddings.weight": torch.ones(1)}}, tmp_path / "80000" / "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("80000")
    assert open_megatron(tmp_path, PARTITIONS, PARTS) is None


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    file.parent.mkdir()
    torch.save({"model": {"language_model": Path("x")}}, file)
    with pytest.raises(CheckpointError, match="is refused"):
        open_megatron(tmp_path, PARTITIONS, PARTS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_form_that_is_written_is_read_as_itself(tmp_path: Path, form: MegatronForm, ranks: int) -> None:
    tensors = {
        WORDS: torch.randn(8, 2),
        "language_model.embedding.position_embeddings.weight": torch.randn(3, 2),
        **{f"language_model.transformer.layers.{i}.input_layernorm.weight": torch.randn(2) for i in range(2)},
        FUSED: torch.randn(12, 2),
        "language_model.transformer.final_layernorm.weight": torch.randn(2),
    }
    arguments = {"make_vocab_size_divisible_by": 4}
    write_megatron(tmp_path, tensors, PARTITIONS, arguments, form=form, ranks=ranks, iteration=70)
    weights = open_megatron(tmp_path, PARTITIONS, PARTS)
    assert weights is not None
    assert (weights.layout, weights.iteration) == (form, 70)
    assert set(weights) == set(tensors)
    assert all(weights[name].equal(tensor) for name, tensor in tensors.items())
