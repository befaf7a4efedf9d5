"""Linears, and how their weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn

from hanlin.layers.linear import Linear, store_by_columns


def test_columns_are_laid_out_without_a_change_of_numbers() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"frozen": Linear(6, 4, bias=True), "trained": Linear(6, 4), "embedding": nn.Embedding(4, 6)})
    model["frozen"].requires_grad_(False)
    model["embedding"].requires_grad_(False)
    inputs, before = torch.randn(1, 6), {name: weight.clone() for name, weight in model.named_parameters()}
    expected = model["frozen"](inputs)
    store_by_columns(model)
    store_by_columns(model)
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
    assert model.get_parameter("frozen.weight").stride() == (1, 4)
    assert all(model.get_parameter(f"{name}.weight").is_contiguous() for name in ("trained", "embedding"))
    torch.testing.assert_close(model["frozen"](inputs), expected)
