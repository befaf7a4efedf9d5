"""Packing in 4 and 8 bits."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.models.chatglm2.quant import dequantise, pack_int4, quantise, unpack_int4


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
    steps = (dequantise(packed, scale, 32) - weight.float()) / scale.float()[:, None]
    # bf16 divides with 8 bits, so a quotient near 127 is off by up to half a step more.
    assert steps.abs().max() <= (1.01 if dtype == torch.bfloat16 else 0.56)


def test_odd_columns_and_a_width_that_fits_neither_kind_are_told() -> None:
    with pytest.raises(CheckpointError, match="choose int8"):
        quantise(torch.ones(2, 3), 4)
    with pytest.raises(CheckpointError, match="12 bytes per row, expected 32"):
        dequantise(torch.zeros(2, 12, dtype=torch.int8), torch.ones(2), 32)
