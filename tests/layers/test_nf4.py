"""NF4: bitsandbytes' bytes and numbers, and nothing that depends on the machine."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.layers.nf4 import (
    BLOCK,
    CODES,
    Nf4,
    largest_of_blocks,
    multiply_by_library,
    unpack_by_library,
    unpack_by_torch,
)

NF4 = Nf4()


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of different sizes, one of them zero."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=draw) * torch.rand(rows, 1, generator=draw)
    weight[1] = 0
    return weight.to(dtype)


def test_a_block_is_its_nearest_quantiles_times_its_largest_magnitude() -> None:
    values = torch.tensor([[*CODES[:6], 0.05, -0.04] * 8])
    packed, *parts = NF4.pack(values)
    assert packed[0, :4].tolist() == [0x01, 0x23, 0x45, 0x87]  # 0.05 is nearer to 0.0796 than to 0
    assert largest_of_blocks(*parts).tolist() == [1.0]
    expected = torch.tensor([[*CODES[:6], CODES[8], CODES[7]] * 8])
    assert NF4.unpack((packed, *parts), BLOCK, torch.float32).equal(expected)


@pytest.mark.parametrize("shape", [(64, 64), (7, 30), (130, 96), (300, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_and_numbers_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = matrix(*shape, dtype)
    packed, absmax, statistics = NF4.pack(weight)
    theirs, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    assert packed.flatten().equal(theirs.flatten())
    # Its mean is a sum in an order that depends on the machine: a last digit.
    stated = torch.cat([state.state2.absmax, state.offset[None]])
    torch.testing.assert_close(statistics.view(torch.float32), stated, rtol=1e-6, atol=0)
    # Its kernel for CPUs takes a neighbour where a number lies within 1e-4 of the middle of two.
    assert (absmax.int() - state.absmax.int()).abs().max() <= 1
    assert (absmax != state.absmax).sum() <= len(absmax) // 100
    largest = largest_of_blocks(absmax, statistics)
    nested, mean = stated.copy_(statistics.view(torch.float32)).tensor_split([-1])
    spread = functional.dequantize_blockwise(absmax, absmax=nested.clone(), code=state.state2.code, blocksize=256)
    assert largest.equal(spread + mean)
    ours = unpack_by_torch(packed, largest, dtype)
    assert NF4.unpack((packed, absmax, statistics), shape[1], dtype).equal(ours)
    if shape[1] % BLOCK == 0:
        assert unpack_by_library(packed, largest, dtype).equal(ours)
        input = torch.randn(3, shape[1], dtype=dtype)
        near = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.1}
        product = multiply_by_library(input, (packed, absmax, statistics))
        torch.testing.assert_close(product, NF4.multiply(input, (packed, absmax, statistics)), **near)


def test_statistics_take_the_nearest_of_256_numbers_in_groups_of_256_blocks() -> None:
    weight = matrix(300, 128)
    _, absmax, statistics = NF4.pack(weight)
    assert (absmax.shape, statistics.shape) == ((600,), (3 + 1,))
    exact = weight.view(-1, BLOCK).abs().amax(dim=1)
    # The widest step between two of the numbers is 0.9 / 64, of the largest one of a group.
    steps = statistics.view(torch.float32)[:-1].repeat_interleave(256)[:600] * 0.9 / 64
    assert ((largest_of_blocks(absmax, statistics) - exact).abs() <= steps / 2 + 1e-6).all()


def test_the_base_is_the_same_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, found = matrix(1100, 2048), []  # enough blocks for torch to add them up in several threads
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(NF4.pack(weight))
    finally:
        torch.set_num_threads(threads)
    assert all(one.equal(other) for one, other in zip(*found, strict=True))
    monkeypatch.setattr("hanlin.layers.nf4._CHUNK", 2**16)
    assert all(one.equal(other) for one, other in zip(found[0], NF4.pack(weight), strict=True))


def test_it_takes_4_and_an_eighth_bits_per_weight() -> None:
    tensors = NF4.empty(4096, 4096)
    assert sum(tensor.nbytes for tensor in tensors) * 8 / 4096**2 == pytest.approx(4.127, abs=1e-3)
    assert [tensor.shape for tensor in NF4.pack(matrix(6, 22))] == [tensor.shape for tensor in NF4.empty(6, 22)]
    with pytest.raises(CheckpointError, match="nf4 takes columns in pairs, but a weight has 3; choose int8"):
        NF4.empty(2, 3)
