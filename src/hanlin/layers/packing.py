"""How a matrix `[out, in]` lies in few bits: int8 and int4, with a scale per row, as ChatGLM2's original packs them.

int8: one byte per weight. int4: two per byte, the even column in the high half, both two's complement in [-7, 7].
NF4 is in nf4.py; what computes with packed weights in quantised.py.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch.nn import functional

from hanlin.core.errors import CheckpointError

Bits = Literal[4, 8]
PackedTensors = tuple[torch.Tensor, ...]

_FEW_ROWS = {torch.float32: 2, torch.bfloat16: 16}
"""Up to so many rows a CPU multiplies by bytes as they are; for more, and in fp16, it takes less time to unpack them
first (benchmarks/packed_bases.py)."""


class Packing(Protocol):
    """A form of packed matrices, each of which is several tensors: `weight`, whose rows are the matrix's, and `parts`.

    name: of the form; parts: the names of the further tensors.
    """

    @property
    def name(self) -> str: ...
    @property
    def parts(self) -> tuple[str, ...]: ...

    def empty(self, rows: int, columns: int) -> PackedTensors:
        """The tensors of a matrix, without values.

        Raises: CheckpointError for a matrix that cannot be packed so.
        """
        ...

    def pack(self, weight: torch.Tensor) -> PackedTensors:
        """The tensors of the matrix that is nearest to `weight`."""
        ...

    def unpack(self, tensors: PackedTensors, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix `[out, columns]`."""
        ...

    def unpacks_long(self, input: torch.Tensor) -> bool:
        """Whether `multiply` unpacks the whole matrix first, and that takes longer than to read it once more."""
        ...

    def multiply(self, input: torch.Tensor, tensors: PackedTensors) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`, in the input's dtype."""
        ...

    def multiply_back(self, gradient: torch.Tensor, tensors: PackedTensors, columns: int) -> torch.Tensor:
        """`[..., out]` -> `[..., columns]`: the input's gradient from the result's."""
        ...


class _ScaledRows:
    """Integers, and the scale of each row, which is kept in the dtype of the arithmetic."""

    parts = ("weight_scale",)

    def unpack(self, tensors: PackedTensors, columns: int, dtype: torch.dtype) -> torch.Tensor:
        packed, scale = tensors
        return dequantise(packed, scale, columns, dtype)

    def unpacks_long(self, input: torch.Tensor) -> bool:
        del input
        return False  # an operation or two


class Int8Rows(_ScaledRows):
    """A byte per weight."""

    name = "int8"

    def empty(self, rows: int, columns: int) -> PackedTensors:
        return torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows)

    def pack(self, weight: torch.Tensor) -> PackedTensors:
        return quantise(weight, 8)

    def multiply(self, input: torch.Tensor, tensors: PackedTensors) -> torch.Tensor:
        packed, scale = tensors
        return multiply_bytes(input, packed, scale)

    def multiply_back(self, gradient: torch.Tensor, tensors: PackedTensors, columns: int) -> torch.Tensor:
        return gradient @ self.unpack(tensors, columns, gradient.dtype)


class Int4Rows(_ScaledRows):
    """Two weights per byte.

    The halves of the bytes are never put together to a matrix: the even columns are multiplied by one, the odd ones by
    the other.
    """

    name = "int4"

    def empty(self, rows: int, columns: int) -> PackedTensors:
        return torch.empty(rows, _packed_size(columns), dtype=torch.int8), torch.empty(rows)

    def pack(self, weight: torch.Tensor) -> PackedTensors:
        return quantise(weight, 4)

    def multiply(self, input: torch.Tensor, tensors: PackedTensors) -> torch.Tensor:
        even, odd = (input[..., start::2] for start in (0, 1))
        high, low = halves(*tensors)
        return multiply_bytes(even, *high) + multiply_bytes(odd, *low)

    def multiply_back(self, gradient: torch.Tensor, tensors: PackedTensors, columns: int) -> torch.Tensor:
        parts = [gradient @ scaled(integers, scale, gradient.dtype) for integers, scale in halves(*tensors)]
        return torch.stack(parts, dim=-1).flatten(-2)


def halves(packed: torch.Tensor, scale: torch.Tensor) -> tuple[PackedTensors, PackedTensors]:
    """The even columns and the odd ones of int4: integers, and the scale of each row."""
    if scale.dtype == torch.float16:  # which would round a sixteenth of a small scale
        return (high_half(packed), scale), (low_half(packed), scale)
    # The odd ones stay 16 times too large, which saves a pass over them.
    return (high_half(packed), scale), (packed << 4, scale / 16)


def multiply_bytes(input: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """input @ (integers * scale).T, `[..., in]` -> `[..., out]`; integers: int8 `[out, in]`, scale: `[out]`."""
    if _kernel_takes(input, integers, scale):
        rows = input.reshape(-1, input.shape[-1]).contiguous()
        return torch.ops.aten._weight_int8pack_mm(rows, integers, scale).view(*input.shape[:-1], len(integers))
    return functional.linear(input, scaled(integers, scale, input.dtype))


def _kernel_takes(input: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether a CPU's kernel multiplies by bytes as they are, right and in less time. It checks little by itself."""
    is_few = input[..., 0].numel() <= _FEW_ROWS.get(input.dtype, 0)
    # It reads bf16 32 at a time, also beyond the end of a row, and scales one behind the other, however they lie.
    is_whole = input.dtype != torch.bfloat16 or input.shape[-1] % 32 == 0
    lies_whole = integers.is_contiguous() and scale.is_contiguous() and scale.dtype == input.dtype
    return is_few and is_whole and lies_whole and input.device.type == "cpu"


def scaled(integers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """integers * scale, row by row, in a dtype."""
    scales = scale.to(dtype)[:, None]
    if integers.device.type == "cpu":
        return integers.to(dtype).mul_(scales)
    return torch.mul(integers, scales)  # which converts as it multiplies, in one pass


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


def dequantise(
    packed: torch.Tensor, scale: torch.Tensor, columns: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The weight `[out, columns]` in a dtype (None: the scale's); its bits are told from the number of columns.

    Raises: CheckpointError.
    """
    found = packed.shape[1]
    if found not in (columns, columns / 2):
        raise CheckpointError(
            f"a quantised weight has {found} bytes per row, expected {columns} (int8) or {columns // 2} (int4)"
        )
    return scaled(packed if found == columns else unpack_int4(packed), scale, dtype or scale.dtype)


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """int8 `[out, in]` of values in [-8, 7] -> int8 `[out, in / 2]`.

    Raises: CheckpointError when `in` is odd.
    """
    _packed_size(integers.shape[1])
    return (integers[:, 0::2] << 4) | (integers[:, 1::2] & 15)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 `[out, n]` -> int8 `[out, 2 n]`, signs included."""
    return torch.stack((high_half(packed), low_half(packed)), dim=-1).flatten(1)


def high_half(packed: torch.Tensor) -> torch.Tensor:
    """Of each byte, as int8: the even columns."""
    return packed >> 4  # shifting an int8 to the right copies its sign


def low_half(packed: torch.Tensor) -> torch.Tensor:
    """Of each byte, as int8: the odd columns."""
    return (packed << 4).__irshift__(4)


def _packed_size(columns: int) -> int:
    if columns % 2:
        raise CheckpointError(f"int4 takes columns in pairs, but a weight has {columns}; choose int8")
    return columns // 2
