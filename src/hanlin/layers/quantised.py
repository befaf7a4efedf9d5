"""Linears whose weights lie packed in memory (packing.py, nf4.py): of bases that are packed on disk, and of any other.

A weight is unpacked when it is multiplied by, in the forward and in the backward pass, and forgotten at once; where a
block is computed again for its backward pass, it is unpacked once for both. Packed weights are not trained; gradients
go through them to what lies before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.plan import Plan
from hanlin.layers.half_weight import HalfWeight
from hanlin.layers.linear import Linear, product
from hanlin.layers.nf4 import Nf4
from hanlin.layers.packing import Int4Rows, Int8Rows, Packing
from hanlin.layers.precision import matmul_dtype

PackingName = Literal["int4", "int8", "nf4"]

_IS_COMPUTED_AGAIN: ContextVar[bool] = ContextVar("computed_again", default=False)

PACKINGS: dict[str, Packing] = {packing.name: packing for packing in (Int4Rows(), Int8Rows(), Nf4())}


class QuantisedLinear(nn.Linear):
    """A linear with a packed `weight` and what belongs to it (`Packing.parts`), as parameters that are not trained.

    scale: as that of `layers.linear.Linear`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, form: PackingName, scale: float = 1.0) -> None:
        """Raises: CheckpointError when the form does not take so many columns."""
        super().__init__(in_features, out_features, bias=bias, device="meta")
        self.packing, self.scale = PACKINGS[form], scale
        tensors = self.packing.empty(out_features, in_features)
        for name, tensor in zip(("weight", *self.packing.parts), tensors, strict=True):
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        found = linear(self, input)
        return found if self.scale == 1.0 else found * self.scale


def linear(module: nn.Linear, input: torch.Tensor, *, has_bias: bool = True) -> torch.Tensor:
    """The module's product and its bias, if that is wanted, without its scale; its weight is packed if it has a
    `packing`."""
    packing, bias = packing_of(module), module.bias if has_bias else None
    if packing is None:
        return product(input, module.weight, bias)
    input = input.to(matmul_dtype(input))
    found: Any = _PackedProduct.apply(input, packing, *_tensors(module, packing))
    return found if bias is None else found + bias.to(found.dtype)


def dense_weight(module: nn.Linear) -> torch.Tensor:
    """The module's weight `[out, in]` as plain numbers, wherever it is packed."""
    packing = packing_of(module)
    if packing is not None:
        return packing.unpack(_tensors(module, packing), module.in_features, torch.float32)
    if isinstance(module.weight, HalfWeight):
        return module.weight.numbers()
    return module.weight.to_dense() if module.weight.is_mkldnn else module.weight


def packing_of(module: nn.Module) -> Packing | None:
    """How the module's weight is packed; None: it is plain numbers."""
    return getattr(module, "packing", None)


def share_weight(module: nn.Linear, base: nn.Linear) -> None:
    """Give a linear the weight of another one, with what belongs to it where it is packed, and its bias."""
    module.weight, module.bias = base.weight, base.bias
    packing = packing_of(base)
    module.packing = packing  # pyright: ignore[reportArgumentType]
    for name in packing.parts if packing is not None else ():
        module.register_parameter(name, base.get_parameter(name))


def quantise_linears(model: nn.Module, form: PackingName) -> None:
    """Put packed linears, without values, in the place of the blocks' plain ones, on their devices (also meta).

    Embeddings, heads, norms and biases stay as they are. `packed` makes the values.
    Raises: ConfigError for a model that has packed ones already, or whose linears the form does not take.
    """
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    linears = [
        (f"{blocks}.{name}", module)
        for blocks in plan.blocks
        for name, module in model.get_submodule(blocks).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if found := next((packing for _, module in linears if (packing := packing_of(module)) is not None), None):
        raise ConfigError(
            f"model.quantise: {form}, but the weights of model.base are packed as {found.name}; leave it out, or let "
            "them be unpacked first with model.config.bits=0"
        )
    for name, module in linears:
        if type(module) not in (nn.Linear, Linear):
            continue  # of a model of the user's own, which may read its weight itself
        try:
            with module.weight.device:
                scale = getattr(module, "scale", 1.0)
                replacement = QuantisedLinear(
                    module.in_features, module.out_features, module.bias is not None, form, scale
                )
        except CheckpointError as error:
            raise ConfigError(f"model.quantise: {name}: {error}") from None
        model.set_submodule(name, replacement.train(module.training))


def packed(packing: Packing, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a packed linear holds of a plain weight, by the names of its parameters."""
    return dict(zip(("weight", *packing.parts), packing.pack(weight), strict=True))


def packed_linears(model: nn.Module) -> dict[str, Packing]:
    """The names of the packed linears of a model, and how each is packed."""
    found = ((name, packing_of(module)) for name, module in model.named_modules())
    return {name: packing for name, packing in found if packing is not None}


def packed_sizes(model: nn.Module) -> dict[str, int]:
    """How many weights each parameter of the packed linears stands for; those that go with a `weight` for none."""
    sizes: dict[str, int] = {}
    for name, packing in packed_linears(model).items():
        module: Any = model.get_submodule(name)
        sizes |= {f"{name}.{part}": 0 for part in packing.parts}
        sizes[f"{name}.weight"] = module.in_features * module.out_features
    return sizes


def _tensors(module: nn.Module, packing: Packing) -> tuple[torch.Tensor, ...]:
    # Not by get_parameter: while a block runs sharded, these are plain tensors.
    return tuple(getattr(module, name) for name in ("weight", *packing.parts))


@contextmanager
def computed_again(is_computed_again: bool = True) -> Iterator[None]:
    """Let products inside keep what they unpack for the backward pass, if that takes long: they belong to a block that
    keeps nothing of its forward pass, and is computed again just before its backward pass.
    """
    token = _IS_COMPUTED_AGAIN.set(is_computed_again)
    try:
        yield
    finally:
        _IS_COMPUTED_AGAIN.reset(token)


class _PackedProduct(torch.autograd.Function):
    """input @ weight.T that keeps nothing but the packed weight for the backward pass, unless it is computed again."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, packing: Packing, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.packing, ctx.columns, ctx.parts = packing, input.shape[-1], len(tensors)
        ctx.keeps_unpacked = _IS_COMPUTED_AGAIN.get() and packing.unpacks_long(input)
        if not ctx.keeps_unpacked:
            ctx.save_for_backward(*tensors)
            return packing.multiply(input, tensors)
        weight = packing.unpack(tensors, ctx.columns, input.dtype)
        ctx.save_for_backward(weight)
        return functional.linear(input, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = ctx.saved_tensors
        if ctx.keeps_unpacked:
            gradient = gradients[0] @ kept[0]
        else:
            gradient = ctx.packing.multiply_back(gradients[0], kept, ctx.columns)
        return gradient, None, *(None for _ in range(ctx.parts))
