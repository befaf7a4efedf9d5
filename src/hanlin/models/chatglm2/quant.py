"""Weights in 8 or 4 bits with a scale per output row, as the original publishes them (chatglm2-6b-int4).

int8: one byte per weight. int4: two per byte, the even column in the high half, both two's complement in [-7, 7].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hanlin.core.errors import CheckpointError
from hanlin.formats.rules import Rule, Tensors

if TYPE_CHECKING:
    import torch

Bits = Literal[4, 8]


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
    """The weight `[out, columns]` in fp32; its bits are told from the number of columns.

    Raises: CheckpointError.
    """
    found = packed.shape[1]
    if found not in (columns, columns / 2):
        raise CheckpointError(
            f"a quantised weight has {found} bytes per row, expected {columns} (int8) or {columns // 2} (int4)"
        )
    integers = packed if found == columns else unpack_int4(packed)
    return integers.float() * scale.float()[:, None]


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """int8 `[out, in]` of values in [-8, 7] -> int8 `[out, in / 2]`.

    Raises: CheckpointError when `in` is odd.
    """
    if integers.shape[1] % 2:
        raise CheckpointError(f"int4 takes columns in pairs, but a weight has {integers.shape[1]}; choose int8")
    return (integers[:, 0::2] << 4) | (integers[:, 1::2] & 15)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 `[out, n]` -> int8 `[out, 2 n]`, signs included."""
    import torch

    # Shifting an int8 to the right copies its sign.
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(1)


class Quantised:
    """A rule whose one tensor of theirs lies there in 8 or 4 bits, with its scales beside it.

    columns: of the weight; bits: those we write, None = this layout is only read.
    """

    def __init__(self, rule: Rule, columns: int, bits: Bits | None) -> None:
        (name,) = rule.theirs
        self.theirs = (name, f"{name}_scale")
        self.ours = rule.ours
        self._rule = rule
        self._columns = columns
        self._bits: Bits | None = bits

    def to_ours(self, tensors: Tensors) -> Tensors:
        packed, scale = tensors
        return self._rule.to_ours((dequantise(packed, scale, self._columns),))

    def to_theirs(self, tensors: Tensors) -> Tensors:
        if self._bits is None:
            raise CheckpointError("the layout quantized is only read; write int8 or int4")
        (weight,) = self._rule.to_theirs(tensors)
        return quantise(weight, self._bits)
