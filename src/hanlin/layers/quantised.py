"""Linears whose weights lie in memory in 8 or 4 bits, with a scale per output row, as ChatGLM2's original packs them.

int8: one byte per weight. int4: two per byte, the even column in the high half, both two's complement in [-7, 7].
A weight is unpacked when it is multiplied by, in the forward and in the backward pass, and forgotten at once. Packed
weights are not trained; gradients go through them to what lies before.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.errors import CheckpointError
from hanlin.layers.precision import matmul_dtype

Bits = Literal[4, 8]


class QuantisedLinear(nn.Linear):
    """A linear with a packed `weight` (int8 `[out, in]`, or `[out, in / 2]` for 4 bits) and `weight_scale` `[out]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool, bits: Bits) -> None:
        """Raises: CheckpointError when 4 bits meet an odd `in_features`."""
        super().__init__(in_features, out_features, bias=bias, device="meta")
        device = torch.get_default_device()
        self.weight = nn.Parameter(
            torch.empty(out_features, _packed_size(in_features, bits), dtype=torch.int8, device=device),
            requires_grad=False,
        )
        self.weight_scale = nn.Parameter(torch.empty(out_features, device=device), requires_grad=False)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.weight_scale, self.bias)


def linear(
    input: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """`functional.linear` by a weight that is packed if there is a scale."""
    if scale is None:
        return functional.linear(input, weight, bias)
    input = input.to(matmul_dtype(input))
    product = _PackedProduct.apply(input, weight, scale)
    return product if bias is None else product + bias.to(product.dtype)


class _PackedProduct(torch.autograd.Function):
    """input @ weight.T that keeps nothing but the packed weight for the backward pass."""

    @staticmethod
    def forward(ctx, input: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.columns = input.shape[-1]
        return functional.linear(input, dequantise(packed, scale, ctx.columns).to(input.dtype))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        packed, scale = ctx.saved_tensors
        return gradient @ dequantise(packed, scale, ctx.columns).to(gradient.dtype), None, None


def quantise(weight: torch.Tensor, bits: Bits) -> tuple[torch.Tensor, torch.Tensor]:
    """Round `[out, in]` to integers: the packed weight (int8), and the scale of each row in the weight's dtype.

    A row of zeros stays one (# differs: the original makes it NaN).
    """
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1) / largest
    steps = weight / scale.where(scale > 0, 1)[:, None]
    # The clamp is for bf16, whose scale may be rounded down by half a step.
    integers = steps.round().clamp(-largest, largest).char()
    return (integers if bits == 8 else pack_int4(integers)), scale


def dequantise(packed: torch.Tensor, scale: torch.Tensor, columns: int) -> torch.Tensor:
    """The weight `[out, columns]` in the scale's dtype; its bits are told from the number of columns.

    Raises: CheckpointError.
    """
    found = packed.shape[1]
    if found not in (columns, columns / 2):
        raise CheckpointError(
            f"a quantised weight has {found} bytes per row, expected {columns} (int8) or {columns // 2} (int4)"
        )
    integers = packed if found == columns else unpack_int4(packed)
    return integers.to(scale.dtype).mul_(scale[:, None])


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """int8 `[out, in]` of values in [-8, 7] -> int8 `[out, in / 2]`.

    Raises: CheckpointError when `in` is odd.
    """
    _packed_size(integers.shape[1], 4)
    return (integers[:, 0::2] << 4) | (integers[:, 1::2] & 15)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 `[out, n]` -> int8 `[out, 2 n]`, signs included."""
    # Shifting an int8 to the right copies its sign.
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)


def _packed_size(columns: int, bits: Bits) -> int:
    if bits == 8:
        return columns
    if columns % 2:
        raise CheckpointError(f"int4 takes columns in pairs, but a weight has {columns}; choose int8")
    return columns // 2
