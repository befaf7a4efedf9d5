"""Packing in 4 and 8 bits, and linears that compute with packed weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.layers.lora import Addition, LoraLinear
from hanlin.layers.packing import dequantise, multiply_bytes, pack_int4, quantise, unpack_int4
from hanlin.layers.quantised import PACKINGS, PackingName, QuantisedLinear, packed, packed_linears, quantise_linears


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


def filled(linear: QuantisedLinear, weight: torch.Tensor) -> QuantisedLinear:
    for name, tensor in packed(linear.packing, weight).items():
        linear.get_parameter(name).data = tensor
    return linear


# None, as in front of a decoder's first token; one row, a few, and more than a CPU multiplies by bytes as they are.
@pytest.mark.parametrize("rows", [0, 1, 3, 20])
@pytest.mark.parametrize("form", PACKINGS)
def test_a_packed_linear_computes_and_passes_gradients_as_its_unpacked_weight(form: PackingName, rows: int) -> None:
    torch.manual_seed(0)
    linear = filled(QuantisedLinear(32, 6, True, form, scale=0.5), torch.randn(6, 32))
    torch.nn.init.normal_(linear.bias)
    plain = linear.packing.unpack(tuple(map(linear.get_parameter, ("weight", *linear.packing.parts))), 32, torch.float)
    inputs = [torch.randn(rows, 1, 32).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [linear(inputs[0]), 0.5 * torch.nn.functional.linear(inputs[1], plain, linear.bias)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


# Width and rows; dtype of the input and of the scale; whether integers and scales lie one behind the other.
KERNEL_CASES = [
    (31, 2, torch.float32, torch.float32, "whole", True),
    (31, 3, torch.float32, torch.float32, "whole", False),
    (64, 16, torch.bfloat16, torch.bfloat16, "whole", True),
    (64, 17, torch.bfloat16, torch.bfloat16, "whole", False),
    (48, 1, torch.bfloat16, torch.bfloat16, "whole", False),  # it reads beyond the end, and may crash
    (64, 1, torch.bfloat16, torch.float32, "whole", False),
    (64, 1, torch.float16, torch.float16, "whole", False),
    (64, 1, torch.float64, torch.float64, "whole", False),
    (64, 1, torch.float32, torch.float32, "integers", False),
    (64, 1, torch.float32, torch.float32, "scale", False),  # of which it reads others, without a word
]


class Called(TorchDispatchMode):
    """Notes which operations are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("width", "rows", "dtype", "scale_dtype", "strided", "is_taken"), KERNEL_CASES)
def test_the_kernel_for_bytes_gets_only_what_it_reads_right(
    width: int, rows: int, dtype: torch.dtype, scale_dtype: torch.dtype, strided: str, is_taken: bool
) -> None:
    torch.manual_seed(0)
    input = torch.randn(1, rows, width, dtype=torch.float64).to(dtype)
    integers = torch.randint(-127, 128, (6, width), dtype=torch.int8)
    scale = torch.rand(6, dtype=torch.float64).to(scale_dtype)
    expected = input.double() @ (integers.double() * scale.double()[:, None]).T
    if strided == "integers":
        integers = integers.t().contiguous().t()
    if strided == "scale":
        scale = torch.stack((scale, scale), dim=1)[:, 0]
    with Called() as called:
        found = multiply_bytes(input, integers, scale)
    assert ("aten::_weight_int8pack_mm" in called.names) is is_taken
    assert found.dtype == dtype
    gap = (found.double() - expected).abs().max() / expected.abs().max()
    assert gap < {torch.bfloat16: 2e-2, torch.float16: 4e-3}.get(dtype, 1e-5)


def test_the_kernel_for_bytes_is_a_cpus() -> None:
    there = [torch.empty(shape, device="meta") for shape in ((1, 32), (6,))]
    with Called() as called:
        multiply_bytes(there[0], torch.empty(6, 32, dtype=torch.int8, device="meta"), there[1])
    assert "aten::_weight_int8pack_mm" not in called.names


@pytest.mark.parametrize("form", PACKINGS)
def test_nothing_unpacked_is_kept_for_the_backward_pass(form: PackingName) -> None:
    linear = filled(QuantisedLinear(64, 64, False, form), torch.randn(64, 64))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(torch.randn(1, 64, requires_grad=True))
    assert sum(tensor.nbytes for tensor in kept) == sum(tensor.nbytes for tensor in linear.parameters())


@pytest.mark.parametrize("form", PACKINGS)
def test_lora_on_a_packed_linear_keeps_its_weight_and_is_not_merged_into_it(form: PackingName) -> None:
    base = filled(QuantisedLinear(16, 8, False, form, scale=0.25), torch.randn(8, 16))
    linear, input = LoraLinear(base, Addition(rank=2, factor=2.0)), torch.randn(3, 16)
    linear.init_addition()
    names = {name for name, _ in linear.named_parameters()}
    assert names == {"lora_A", "lora_B", *(name for name, _ in base.named_parameters())}
    torch.testing.assert_close(linear(input), base(input))
    with pytest.raises(AssertionError, match="plain numbers"):
        linear.merged()


def test_a_model_of_the_users_own_keeps_linears_that_compute_in_their_own_way() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Module()
    model.plan = SimpleNamespace(blocks=("blocks",))  # pyright: ignore[reportAttributeAccessIssue]
    model.blocks = nn.ModuleDict({"0": nn.Sequential(Own(4, 4), nn.Linear(4, 3))})
    model.head = nn.Linear(4, 4)
    quantise_linears(model, "int8")
    assert list(packed_linears(model)) == ["blocks.0.1"]
    with pytest.raises(ConfigError, match="packed as int8; leave it out"):
        quantise_linears(model, "nf4")
    model.blocks = nn.ModuleDict({"0": nn.Linear(3, 4)})
    with pytest.raises(ConfigError, match=r"model.quantise: blocks.0: nf4 takes columns in pairs, but a weight has 3"):
        quantise_linears(model, "nf4")
