"""Experts read from disk compute what experts in memory do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hanlin.formats.load import load_into, open_ours, save_base
from hanlin.layers.expert_memory import ExpertMemory, expert_weights
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2

CONFIG = Cpm2Config(
    vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, head_dim=4, ffn_size=24, num_experts=4, init_std=0.3
)
EXPERT_BYTES = 3 * 16 * 24 * 4
CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = Cpm2(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(tmp_path / "base", family, CONFIG, dict(model.named_parameters()))
    return tmp_path / "base"


def streamed(base: Path, limit_bytes: float) -> tuple[Cpm2, ExpertMemory]:
    with torch.device("meta"):
        model = Cpm2(CONFIG)
    left = expert_weights(model)
    load_into(model, base, family, wanted=lambda name: name not in left)
    memory = ExpertMemory(open_ours(base, family), limit_bytes, torch.float32)
    memory.attach(model, CPU)
    return model.eval(), memory


@torch.no_grad()
def test_answers_are_the_same_within_a_limit(base: Path) -> None:
    whole = Cpm2(CONFIG)
    load_into(whole, base, family)
    whole.eval()
    model, memory = streamed(base, 3 * EXPERT_BYTES)
    for seed in range(3):
        tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(seed))
        inputs = {"tokens": tokens, "encoder_tokens": tokens.flip(1)}
        assert model(**inputs).equal(whole(**inputs))
        assert memory.held_bytes <= 3 * EXPERT_BYTES
    # 2 x 2 layers of 4 experts do not fit into room for 3: some were read more than once.
    assert memory.read > 16
    assert sum(weight.numel() * 4 for weight in expert_weights(model).values()) == memory.held_bytes


@torch.no_grad()
def test_an_expert_that_stays_is_read_once(base: Path) -> None:
    model, memory = streamed(base, 1000 * EXPERT_BYTES)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    model(tokens=tokens, encoder_tokens=tokens)
    read = memory.read
    model(tokens=tokens, encoder_tokens=tokens)
    assert 0 < memory.read == read <= 16


def test_a_limit_below_one_expert_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="one expert takes"):
        streamed(base, EXPERT_BYTES - 1)


def test_a_model_without_experts_has_nothing_to_read() -> None:
    assert not expert_weights(Cpm2(replace(CONFIG, num_experts=0)))
