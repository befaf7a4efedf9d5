"""Matrices of fp32 models that are held in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hanlin.layers.half_weight import HalfWeight, fits_half
from hanlin.layers.linear import Linear, product, store_as_half, store_by_columns, store_in_blocks
from hanlin.layers.lora import Addition, LoraLinear
from hanlin.layers.loss import head_logits, head_loss
from hanlin.layers.quantised import dense_weight

has_kernel = pytest.mark.skipif(not fits_half(torch.ones(8, 8)), reason="this torch has no FBGEMM")


def halves(*shape: int) -> torch.Tensor:
    """Numbers of half precision, in fp32; the smallest and the largest are among them."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half().float()
    numbers.flatten()[:4] = torch.tensor([6e-8, 65504.0, -3e-6, -0.0]).half().float()
    return numbers


def made() -> nn.ModuleDict:
    layers = {"biased": Linear(48, 80, bias=True), "scaled": Linear(48, 33, scale=0.25), "exact": Linear(48, 8)}
    lora = LoraLinear(Linear(48, 80, scale=0.5), Addition(rank=2, factor=2.0))
    for weight in (lora.lora_A, lora.lora_B):
        nn.init.normal_(weight)
    model = nn.ModuleDict({**layers, "lora": lora, "torch's": nn.Linear(48, 8), "table": nn.Embedding(9, 48)})
    for name in ("biased", "scaled", "lora", "table"):
        weight = model.get_parameter(f"{name}.weight")
        weight.data = halves(*weight.shape)
    return model.requires_grad_(False)


@has_kernel
def test_what_half_precision_has_is_packed_and_nothing_else() -> None:
    model, inputs = made(), torch.randn(5, 2, 48)
    before, names = (
        {name: layer(inputs) for name, layer in model.items() if name != "table"},
        dict(model.named_parameters()),
    )
    weights = {name: weight.clone() for name, weight in names.items()}
    store_by_columns(model)
    for _ in range(2):
        store_as_half(model, {"table"})
        store_by_columns(model)
    store_in_blocks(model)
    packed = {name for name, weight in model.named_parameters() if isinstance(weight, HalfWeight)}
    assert packed == {"biased.weight", "scaled.weight", "lora.weight", "table.weight"}
    assert model.get_parameter("exact.weight").is_mkldnn
    for name, weight in model.named_parameters():
        assert isinstance(weight, nn.Parameter)
        assert (weight.shape, weight.dtype) == (weights[name].shape, torch.float32)
        assert (weight.to_dense() if weight.is_mkldnn else weight * 1).equal(weights[name])
    for name, expected in before.items():
        torch.testing.assert_close(model[name](inputs), expected)
        torch.testing.assert_close(model[name](inputs[:1, -1:]), expected[:1, -1:])
        assert model[name](inputs[:0]).shape == expected[:0].shape


@has_kernel
def test_a_row_is_the_same_beside_any_others() -> None:
    """But for rounding: which kernel takes how many rows is the processor's matter."""
    weight, inputs = HalfWeight.of(halves(80, 513)), torch.randn(40, 513)
    whole = product(inputs, weight)
    for count in (1, 2, 3, 4, 5, 6, 7, 12, 13, 33):
        torch.testing.assert_close(product(inputs[-count:], weight), whole[-count:], rtol=1e-5, atol=1e-3)
    exact = functional.linear(inputs.double(), weight.numbers().double())
    assert float(((whole - exact).abs() / exact.abs().mean(0)).max()) < 1e-5  # FBGEMM adds one product after another


@has_kernel
def test_a_table_gives_rows_and_logits() -> None:
    model, ids, hidden = made(), torch.tensor([[0, 8, 3]]), torch.randn(2, 3, 48)
    labels, table = torch.tensor([[1, -100, 7], [4, 5, 6]]), model["table"]
    rows, logits = table(ids), head_logits(hidden, [(table.weight, 0.5)])
    losses = head_loss(hidden, [(table.weight, 0.5)], labels, reduction="none")
    store_as_half(model, {"table"})
    assert table(ids).equal(rows)
    torch.testing.assert_close(head_logits(hidden, [(table.weight, 0.5)]), logits)
    torch.testing.assert_close(head_loss(hidden, [(table.weight, 0.5)], labels, reduction="none"), losses)


@has_kernel
def test_an_addition_made_on_packed_weights_knows_their_numbers() -> None:
    model = made()
    store_as_half(model)
    assert dense_weight(model["biased"]).equal(halves(80, 48))
    lora = LoraLinear(model["biased"], Addition(rank=2, factor=2.0, has_magnitude=True))
    assert isinstance(lora.weight, HalfWeight)
    assert not isinstance(model["table"].weight, HalfWeight)  # its rows are only looked up
    with pytest.raises(AssertionError, match="packed"):
        lora.weight.zero_()


def test_numbers_that_half_precision_lacks_do_not_fit() -> None:
    for number in (1 / 3, 1e6, 1e-9, torch.inf * 0):
        weight = torch.ones(3, 8)
        weight[2, 5] = number
        assert not fits_half(weight)
