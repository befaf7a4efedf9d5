"""Megatron's files: orders of fused rows, padding of the vocabulary, and what is named when files are missing."""

from __future__ import annotations

import argparse
import enum
import shutil
import sys
import types
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


def model_tensors() -> dict[str, torch.Tensor]:
    return {
        WORDS: torch.randn(8, 2),
        "language_model.embedding.position_embeddings.weight": torch.randn(3, 2),
        **{f"language_model.transformer.layers.{i}.input_layernorm.weight": torch.randn(2) for i in range(2)},
        FUSED: torch.randn(12, 2),
        "language_model.transformer.final_layernorm.weight": torch.randn(2),
    }


def write_form(folder: Path, form: MegatronForm, ranks: int, tensors: dict[str, torch.Tensor] | None = None) -> None:
    arguments = {"make_vocab_size_divisible_by": 4}
    write_megatron(folder, tensors or model_tensors(), PARTITIONS, arguments, form=form, ranks=ranks, iteration=70)


@pytest.mark.parametrize(
    ("form", "lost", "told"),
    [
        ("megatron", "iter_0000070/mp_rank_01", r"mp_rank_01/model_optim_rng\.pt missing"),
        ("deepspeed", "global_step70/mp_rank_01_model_states.pt", r"mp_rank_01_model_states\.pt missing"),
        ("pipeline", "global_step70/layer_03-model_01-model_states.pt", r"layer_03-model_01-model_states\.pt missing"),
        ("pipeline", "global_step70/layer_03-*", r"layer_03-model_00-model_states\.pt, layer_03-model_01"),
        ("pipeline", "global_step70/layer_05-*", r"that of the last layer \(the final norm\) missing"),
        ("pipeline", "global_step70/layer_00-*", r"layer_00-model_00-model_states\.pt, layer_00-model_01"),
        ("pipeline", "global_step70/layer_*-model_01-*", "layer files of 1 tensor ranks, but .* says 2"),
    ],
)
def test_what_is_missing_of_a_set_is_named(tmp_path: Path, form: MegatronForm, lost: str, told: str) -> None:
    write_form(tmp_path, form, 2)
    for path in tmp_path.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=told):
        open_megatron(tmp_path, PARTITIONS, PARTS)


def test_layer_files_of_unequal_shares_are_not_merged(tmp_path: Path) -> None:
    write_form(tmp_path, "pipeline", 2)
    file = tmp_path / "global_step70" / "layer_00-model_01-model_states.pt"
    torch.save({**torch.load(file), "word_embeddings.weight": torch.zeros(3, 2)}, file)
    with pytest.raises(CheckpointError, match=r"rank 1 has .* another shape: language_model\.embedding\.word"):
        open_megatron(tmp_path, PARTITIONS, PARTS)


@pytest.mark.parametrize("form", ["megatron", "deepspeed"])
def test_one_file_may_have_any_name(tmp_path: Path, form: MegatronForm) -> None:
    tensors = model_tensors()
    for ranks in (1, 2):
        write_form(tmp_path / str(ranks), form, ranks, tensors)
        next((tmp_path / str(ranks)).rglob("*.pt")).rename(tmp_path / f"of_{ranks}.pt")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "of_1.pt", tmp_path / "alone" / "gpt.pt")
    for path in (tmp_path / "of_1.pt", tmp_path / "alone"):
        weights = open_megatron(path, PARTITIONS, PARTS)
        assert weights is not None
        assert weights.layout == form
        assert all(weights[name].equal(tensor) for name, tensor in tensors.items())
    with pytest.raises(CheckpointError, match="holds the share of one of 2 model-parallel ranks"):
        open_megatron(tmp_path / "of_2.pt", PARTITIONS, PARTS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_form_that_is_written_is_read_as_itself(tmp_path: Path, form: MegatronForm, ranks: int) -> None:
    tensors = model_tensors()
    write_form(tmp_path, form, ranks, tensors)
    weights = open_megatron(tmp_path, PARTITIONS, PARTS)
    assert weights is not None
    assert (weights.layout, weights.iteration) == (form, 70)
    assert set(weights) == set(tensors)
    assert all(weights[name].equal(tensor) for name, tensor in tensors.items())


def test_arguments_of_newer_programs_are_read_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enums = types.ModuleType("megatron.model.enums")
    for name in ("megatron", "megatron.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, enums.__name__, enums)
    kind = enum.Enum("LayerType", {"encoder": 1}, module=enums.__name__)
    enums.LayerType = kind  # pyright: ignore[reportAttributeAccessIssue]
    write_form(tmp_path, "megatron", 1)
    file = next(tmp_path.rglob("*.pt"))
    state = torch.load(file, weights_only=False)
    state["args"].layer_type, state["args"].params_dtype = kind.encoder, torch.float16  # pyright: ignore[reportAttributeAccessIssue]
    torch.save(state, file)
    weights = open_megatron(tmp_path, PARTITIONS, PARTS)
    assert weights is not None
    assert weights.arguments["make_vocab_size_divisible_by"] == 4
    assert weights.arguments["params_dtype"] == torch.float16
