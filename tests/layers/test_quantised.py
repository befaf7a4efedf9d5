"""Packing in 4 and 8 bits, and linears that compute with packed weights."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.layers.quantised import QuantisedLinear, dequantise, pack_int4, quantise, unpack_int4


def test_the_even_column_stands_in_the_high_half() -> None:
    integers = torch.tensor([[1, -1, -7, 7]], dtype=torch.int8)
    packed = pack_int4(integers)
    assert packed.view(torch.uint8).tolist() == [[0x1F, 0x97]]
    assert unpack_int4(packed).equal(integers)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_weight_moves_by_more_than_half_a_step(bits, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed, scale = quantise(weight, bits)
    assert (packed.dtype, scale.dtype) == (torch.int8, dtype)
    steps = (dequantise(packed, scale.float(), 32) - weight.float()) / scale.float()[:, None]
    # bf16 divides with 8 bits, so a quotient near 127 is off by up to half a step more.
    assert steps.abs().max() <= (1.01 if dtype == torch.bfloat16 else 0.56)


def test_odd_columns_and_a_width_that_fits_neither_kind_are_told() -> None:
    with pytest.raises(CheckpointError, match="choose int8"):
        quantise(torch.ones(2, 3), 4)
    with pytest.raises(CheckpointError, match="12 bytes per row, expected 32"):
        dequantise(torch.zeros(2, 12, dtype=torch.int8), torch.ones(2), 32)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_linear_computes_and_passes_gradients_as_its_unpacked_weight(bits) -> None:
    torch.manual_seed(0)
    packed = QuantisedLinear(16, 6, True, bits)
    weight, scale = quantise(torch.randn(6, 16), bits)
    packed.weight.data, packed.weight_scale.data = weight, scale
    torch.nn.init.normal_(packed.bias)
    plain = dequantise(weight, scale, 16)
    inputs = [torch.randn(3, 2, 16).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [packed(inputs[0]), torch.nn.functional.linear(inputs[1], plain, packed.bias)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_nothing_unpacked_is_kept_for_the_backward_pass() -> None:
    packed = QuantisedLinear(64, 64, False, 4)
    packed.weight.data.zero_()
    packed.weight_scale.data.fill_(1)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        packed(torch.randn(1, 64, requires_grad=True))
    assert sum(tensor.nbytes for tensor in kept) <= packed.weight.nbytes + packed.weight_scale.nbytes + 64 * 4
