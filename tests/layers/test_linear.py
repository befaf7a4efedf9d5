"""Linears, and how their weights lie in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hanlin.layers.linear import Linear, product, store_by_columns, store_in_blocks
from hanlin.layers.lora import Addition, LoraLinear
from hanlin.layers.loss import head_logits, head_loss

HAS_BLOCKS = torch.backends.mkldnn.is_available()


class Doubled(Linear):
    """Of a user: it reads the weight itself."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ (2 * self.weight.t())


def test_columns_are_laid_out_without_a_change_of_numbers() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"wide": Linear(4, 6, bias=True), "narrow": Linear(6, 4), "trained": Linear(4, 6)})
    model["embedding"] = nn.Embedding(6, 4)
    for name in ("wide", "narrow", "embedding"):
        model[name].requires_grad_(False)
    inputs, before = torch.randn(1, 4), {name: weight.clone() for name, weight in model.named_parameters()}
    expected = model["wide"](inputs)
    store_by_columns(model)
    store_by_columns(model)
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
    assert model.get_parameter("wide.weight").stride() == (1, 6)
    assert all(model.get_parameter(f"{name}.weight").is_contiguous() for name in ("narrow", "trained", "embedding"))
    torch.testing.assert_close(model["wide"](inputs), expected)


def frozen_layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    lora = LoraLinear(Linear(48, 80, scale=0.5), Addition(rank=2, factor=2.0))
    for weight in (lora.lora_A, lora.lora_B):
        nn.init.normal_(weight)
    plain = {"biased": Linear(48, 80, bias=True), "scaled": Linear(48, 33, scale=0.25), "doubled": Doubled(48, 8)}
    return nn.ModuleDict({**plain, "lora": lora, "torch's": nn.Linear(48, 8)}).requires_grad_(False)


def test_blocks_change_neither_names_nor_numbers() -> None:
    layers, whole = frozen_layers(), torch.randn(5, 2, 48)
    weights, inputs = copy.deepcopy(layers.state_dict()), (whole, whole[:1, :1], whole[:0], whole[:, -1:])
    before = {name: [layer(some) for some in inputs] for name, layer in layers.items()}
    store_by_columns(layers)
    for _ in range(2):
        store_in_blocks(layers)
        store_by_columns(layers)
    for name, layer in layers.items():
        assert layer.get_parameter("weight").is_mkldnn == (HAS_BLOCKS and name in ("biased", "scaled", "lora"))
        torch.testing.assert_close([layer(some) for some in inputs], before[name])
    for name, weight in layers.named_parameters():
        assert (weight.shape, weight.dtype) == (weights[name].shape, weights[name].dtype)
        assert weight.to_dense().equal(weights[name]) if weight.is_mkldnn else weight.equal(weights[name])


@pytest.mark.skipif(not HAS_BLOCKS, reason="this torch has no oneDNN")
def test_a_row_is_the_same_beside_any_others() -> None:
    layers, inputs = frozen_layers(), torch.randn(40, 48)
    store_in_blocks(layers)
    whole = layers["biased"](inputs)
    for count in (1, 2, 3, 4, 7, 8, 33):
        assert layers["biased"](inputs[-count:]).equal(whole[-count:])


def test_trained_half_and_wide_weights_stay() -> None:
    layers = nn.ModuleList([Linear(8, 8), Linear(8, 8).bfloat16().requires_grad_(False)])
    layers.append(Linear(8, 8).double().requires_grad_(False))
    store_in_blocks(layers)
    assert not any(weight.is_mkldnn for weight in layers.parameters())


def test_a_head_in_blocks_gives_the_same_losses() -> None:
    layers, hidden, labels = frozen_layers(), torch.randn(2, 3, 48), torch.tensor([[1, -100, 79], [4, 5, 6]])
    head = layers["biased"]
    logits = head_logits(hidden, [(head.weight, 0.5)])
    losses = head_loss(hidden, [(head.weight, 0.5)], labels, reduction="none")
    store_in_blocks(layers)
    torch.testing.assert_close(head_logits(hidden, [(head.weight, 0.5)]), logits)
    torch.testing.assert_close(head_loss(hidden, [(head.weight, 0.5)], labels, reduction="none"), losses)
    torch.testing.assert_close(product(0.5 * hidden, head.weight), logits)
