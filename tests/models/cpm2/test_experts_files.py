"""Files of the mixture of experts: its names in and out, experts read alone, and the starting point of its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import convert
from hanlin.formats.describe import describe
from hanlin.formats.load import load_into, open_ours, save_base
from hanlin.formats.source import open_source, read_config
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config

CONFIG = Cpm2Config(
    vocab_size=24, hidden_size=8, num_layers=2, num_heads=2, head_dim=4, ffn_size=12, init_std=0.05, num_experts=3
)
EXPERT = "encoder_blocks.1.ffn.experts.{}.gate.weight"
THEIRS = "encoder.blocks.1.ff.expert_network.dense_relu_dense.wi_0.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = family.model()(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(tmp_path / "base", family, CONFIG, {name: weight.detach() for name, weight in model.named_parameters()})
    return tmp_path / "base"


def test_each_expert_has_its_files_under_the_originals_names(base: Path, tmp_path: Path) -> None:
    convert(base, family, None, "experts", tmp_path / "out", ranks=2, iteration=300000)
    files = sorted(file.name for file in (tmp_path / "out/300000").iterdir())
    assert files == [f"mp_rank_{expert:02d}_{rank:02d}_model_states.pt" for expert in range(3) for rank in range(2)]
    ours = open_source(base, family).weights
    for expert in range(3):
        file = tmp_path / f"out/300000/mp_rank_{expert:02d}_01_model_states.pt"
        model = torch.load(file, weights_only=True)["model"]
        assert model[THEIRS].equal(ours[EXPERT.format(expert)][6:])
        assert model["encoder.blocks.1.ff.expert_centroids"].equal(ours["encoder_blocks.1.ffn.centroids"])
    found = describe(tmp_path / "out", [family])
    assert (found.layout, found.iteration, found.problem) == ("experts", 300000, None)
    convert(tmp_path / "out", family, None, "base", tmp_path / "again")
    assert read_config(tmp_path / "again", family).num_experts == 3
    again = open_source(tmp_path / "again", family).weights
    assert all(again[name].equal(ours[name]) for name in ours)


def test_some_experts_are_read_without_opening_the_others(base: Path, tmp_path: Path) -> None:
    convert(base, family, None, "experts", tmp_path / "out")
    wanted = tmp_path / "out/1/mp_rank_02_00_model_states.pt"
    (tmp_path / "out/1/mp_rank_01_00_model_states.pt").write_bytes(b"not read")
    ours = open_ours(tmp_path / "out", family)
    assert ours[EXPERT.format(2)].equal(torch.load(wanted, weights_only=True)["model"][THEIRS])
    with torch.device("meta"):
        model = family.model()(CONFIG)
    load_into(model, tmp_path / "out", family, wanted=lambda name: ".experts." not in name or ".experts.2." in name)
    filled = {name for name, weight in model.named_parameters() if not weight.is_meta}
    others = (".experts.0.", ".experts.1.")
    assert filled == {name for name, _ in model.named_parameters() if not any(other in name for other in others)}


def test_a_starting_point_gives_every_expert_the_same_weights(base: Path, tmp_path: Path) -> None:
    convert(base, family, None, "experts", tmp_path / "out", iteration=5)
    start = tmp_path / "start"
    start.mkdir()
    (tmp_path / "out/5/mp_rank_01_00_model_states.pt").rename(start / "mp_rank_00_model_states.pt")
    ours = open_ours(start, family)
    assert all(ours[EXPERT.format(expert)].equal(ours[EXPERT.format(0)]) for expert in range(3))
    assert ours[EXPERT.format(0)].equal(open_source(base, family).weights[EXPERT.format(1)])


def test_missing_files_and_the_wrong_layout_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="write it in the layout 'experts'"):
        convert(base, family, None, "original", tmp_path / "out")
    convert(base, family, None, "experts", tmp_path / "out", ranks=2)
    (tmp_path / "out/1/mp_rank_01_01_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_01_01_model_states\.pt is missing"):
        open_source(tmp_path / "out", family)
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_01_01_model_states\.pt missing"):
        open_source(tmp_path / "out", family)
