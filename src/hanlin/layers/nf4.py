"""NF4 (QLoRA, Dettmers et al. 2023): 4 bits per weight, a scale per block of 64, the scales themselves in 8 bits.

A weight is one of 16 quantiles of a normal distribution, times the largest magnitude of its block; 4.127 bits per
weight in all. The bytes are those of bitsandbytes (`quantize_4bit` with `compress_statistics`), which
unpacks them where it is installed. Blocks go through the matrix row by row, also across the ends of rows.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch.nn import functional

from hanlin.core.errors import CheckpointError
from hanlin.layers.dynamic_code import dynamic_code
from hanlin.layers.packing import PackedTensors

BLOCK = 64
GROUP = 256
"""Scales that have one scale of their own."""

CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""What a half byte stands for, as bitsandbytes rounds the quantiles."""

_CHUNK = 2**22
"""Weights that are packed at a time, so that a large matrix takes no large temporary tensors."""
_CHUNK_BYTES, _LARGE_CHUNK_BYTES = {"cpu": 2**17}, 2**22
"""What is unpacked at a time: in a CPU its temporary tensors stay in the cache, which takes a third of the time."""
_LIBRARY = "bitsandbytes"
_LIBRARY_DEVICES = ("cuda", "xpu")
"""On a CPU it takes longer than torch alone (benchmarks/packed_bases.py)."""
_FEW_ROWS = 64
"""Up to so many rows the library multiplies by the packed matrix as it is."""


class Nf4:
    """A matrix as three tensors.

    weight: uint8 `[out, in / 2]`, the even column in the high half; weight_absmax: uint8 `[blocks]`, the largest
    magnitudes less their mean; weight_nested: the scale of each group of these, and that mean, as the bits of fp32
    numbers (int32 `[groups + 1]`), which no cast to the dtype of the arithmetic touches.
    """

    name, parts = "nf4", ("weight_absmax", "weight_nested")

    def empty(self, rows: int, columns: int) -> PackedTensors:
        if columns % 2:
            raise CheckpointError(f"nf4 takes columns in pairs, but a weight has {columns}; choose int8")
        blocks = -(-rows * columns // BLOCK)
        return (
            torch.empty(rows, columns // 2, dtype=torch.uint8),
            torch.empty(blocks, dtype=torch.uint8),
            torch.empty(-(-blocks // GROUP) + 1, dtype=torch.int32),
        )

    def pack(self, weight: torch.Tensor) -> PackedTensors:
        flat = weight.reshape(-1)
        packed, largest = zip(*map(_packed_blocks, flat.split(_CHUNK)), strict=True)
        absmax = torch.cat(largest)
        # One number after the other: the same sum whatever the threads, so that all ranks hold the same base.
        mean = (absmax.double().cumsum(0)[-1] / len(absmax)).float()
        quantised, nested = _quantised_to(_scale_codes(flat.device), absmax - mean, GROUP)
        statistics = torch.cat([nested, mean[None]]).view(torch.int32)
        return torch.cat(packed).view(len(weight), -1), quantised.to(torch.uint8), statistics

    def unpack(self, tensors: PackedTensors, columns: int, dtype: torch.dtype) -> torch.Tensor:
        packed, absmax = tensors[0], largest_of_blocks(*tensors[1:])
        exact = torch.float32 if dtype == torch.float64 else dtype
        unpacked = unpack_by_library if _has_library(packed.device.type) else unpack_by_torch
        return unpacked(packed, absmax, exact).to(dtype)

    def unpacks_long(self, input: torch.Tensor) -> bool:
        is_few = input[..., 0].numel() <= _FEW_ROWS and input.shape[-1] % BLOCK == 0
        return not (is_few and _has_library(input.device.type) and _multiplies())

    def multiply(self, input: torch.Tensor, tensors: PackedTensors) -> torch.Tensor:
        if not self.unpacks_long(input):
            return multiply_by_library(input, tensors)
        return functional.linear(input, self.unpack(tensors, input.shape[-1], input.dtype))

    def multiply_back(self, gradient: torch.Tensor, tensors: PackedTensors, columns: int) -> torch.Tensor:
        return gradient @ self.unpack(tensors, columns, gradient.dtype)


def unpack_by_torch(packed: torch.Tensor, absmax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix `[out, in]` from `weight` and the largest magnitude of each block; rounded once, to `dtype`."""
    pairs, flat = _pairs(packed.device), packed.flatten()
    out = torch.empty(2 * len(flat), dtype=dtype, device=packed.device)
    chunk = _CHUNK_BYTES.get(packed.device.type, _LARGE_CHUNK_BYTES)
    pieces = zip(flat.split(chunk), out.split(2 * chunk), absmax.split(2 * chunk // BLOCK), strict=True)
    for piece, target, scales in pieces:
        # Both numbers of a byte are looked up as one of 8 bytes.
        values = pairs.index_select(0, piece.int()).view(torch.float32)
        _scale(values, scales, target)
    return out.view(len(packed), -1)


def _scale(values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Write values (which are changed) times the scales of their blocks."""
    if len(values) % BLOCK:
        out.copy_(values.mul_(scales.repeat_interleave(BLOCK)[: len(values)]))
    elif values.device.type in ("cuda", "meta"):  # rounds as it writes
        torch.mul(values.view(-1, BLOCK), scales[:, None], out=out.view(-1, BLOCK))
    else:
        out.copy_(values.view(-1, BLOCK).mul_(scales[:, None]).flatten())


def unpack_by_library(packed: torch.Tensor, absmax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers, bit for bit, by the kernel of bitsandbytes.

    (But for its kernel for CPUs, which takes the ends of rows for those of blocks.)
    """
    import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]: registers the operator

    shape = [len(packed), 2 * packed.shape[1]]
    return torch.ops.bitsandbytes.dequantize_4bit(packed.view(-1, 1), absmax, BLOCK, "nf4", shape, dtype)


def multiply_by_library(input: torch.Tensor, tensors: PackedTensors) -> torch.Tensor:
    """`Nf4.multiply` by the kernel of bitsandbytes, which reads the packed matrix alone."""
    import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]: registers the operator

    packed, absmax, statistics = tensors
    nested, (mean,) = statistics.view(torch.float32).tensor_split([-1])
    codes, shape = _scale_codes(input.device), [len(packed), input.shape[-1]]
    multiply = torch.ops.bitsandbytes.gemm_4bit
    return multiply(input.contiguous(), packed.view(-1, 1), shape, nested, BLOCK, "nf4", None, absmax, codes, mean)


def largest_of_blocks(quantised: torch.Tensor, statistics: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each block, fp32 `[blocks]`, from `weight_absmax` and `weight_nested`."""
    nested, mean = statistics.view(torch.float32).tensor_split([-1])
    values = _scale_codes(quantised.device).index_select(0, quantised.int())
    return values.mul_(nested.repeat_interleave(GROUP)[: len(values)]).add_(mean)


def _packed_blocks(flat: torch.Tensor) -> PackedTensors:
    numbers, absmax = _quantised_to(torch.tensor(CODES, device=flat.device), flat.float(), BLOCK)
    halves = numbers.to(torch.uint8)
    return halves[0::2] << 4 | halves[1::2], absmax


def _quantised_to(codes: torch.Tensor, flat: torch.Tensor, block: int) -> PackedTensors:
    """The number of the code that is nearest to each value, relative to the largest magnitude of its block (int32), and
    those magnitudes."""
    blocks = functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(dim=1)
    relative = (blocks * (1 / absmax.clamp(min=1e-38))[:, None]).clamp_(-1, 1).flatten()[: len(flat)]
    return torch.bucketize(relative, (codes[1:] + codes[:-1]) / 2, out_int32=True), absmax


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """Of each byte the numbers of its high and its low half: fp32, two of them as an int64."""
    codes = torch.tensor(CODES)
    return torch.stack((codes.repeat_interleave(16), codes.repeat(16)), dim=-1).view(torch.int64).flatten().to(device)


@cache
def _scale_codes(device: torch.device) -> torch.Tensor:
    return dynamic_code(is_signed=True).to(device)


@cache
def _has_library(device: str) -> bool:
    return device in _LIBRARY_DEVICES and find_spec(_LIBRARY) is not None


@cache
def _multiplies() -> bool:
    """Whether the library has the operator, as its versions from 0.50 on."""
    import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]: registers the operator

    return hasattr(torch.ops.bitsandbytes, "gemm_4bit")
