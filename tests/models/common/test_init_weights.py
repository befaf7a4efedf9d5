"""Fresh weights: which modules are filled, with what, and which are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hanlin.layers.norm import LayerNorm
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.common.init_weights import init_parameters, std_by_depth


def test_matrices_are_drawn_in_their_order_norms_are_1_and_biases_0() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "norm": LayerNorm(4, 1e-5), "up": nn.Linear(4, 3)})
    nn.init.normal_(model.norm.weight)
    init_parameters(model, {"embedding": 1.0, "up": 0.5}.__getitem__, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(model.embedding.weight, torch.empty(5, 4).normal_(std=1.0, generator=draw))
    assert torch.equal(model.up.weight, torch.empty(3, 4).normal_(std=0.5, generator=draw))
    assert model.norm.weight.eq(1).all()
    assert not any(bias.any() for bias in (model.norm.bias, model.up.bias))


def test_what_tuning_adds_is_left_alone() -> None:
    model = nn.ModuleDict({"soft_prompt": SoftPrompt(2, 4), "up": nn.Linear(4, 3)})
    nn.init.constant_(model.soft_prompt.weight, 7)
    init_parameters(model, lambda _: 1.0)
    assert model.soft_prompt.weight.eq(7).all()


def test_what_is_added_up_along_the_blocks_is_drawn_smaller() -> None:
    assert std_by_depth("blocks.0.attention.output", 0.02, 8) == pytest.approx(0.005)
    assert std_by_depth("blocks.0.attention.query", 0.02, 8) == 0.02
