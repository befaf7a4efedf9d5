"""Low-rank additions to linears (Hu et al. 2021): the base stays bitwise as it is, two small matrices learn.

In the original CPM-Bee the addition bypasses the linear's factor 1 / sqrt(in_features) (OpenDelta adds it to the
finished output): `form="original"`. With `form="scaled"` the factor stands before the sum of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.layers.linear import Linear
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.quantised import linear, packing_of, share_weight

LoraForm = Literal["original", "scaled"]


class LoraLinear(nn.Linear):
    """A linear with an addition; `weight` (and `bias`) keep their names, so the base's checkpoints fit as before.

    The addition is kept in fp32 whatever the base's dtype.
    """

    added = ("lora_A", "lora_B")
    reads_blocks = True

    def __init__(
        self, base: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0, form: LoraForm = "original"
    ) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        share_weight(self, base)  # that of a quantised base stays packed
        self.scale: float = getattr(base, "scale", 1.0)
        self.factor = alpha / rank * (self.scale if form == "scaled" else 1.0)
        self.dropout = dropout
        on = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **on))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank, **on))
        self.train(base.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product = linear(self, input) * self.scale
        dropped = functional.dropout(input, self.dropout, self.training).to(matmul_dtype(self.lora_A))
        addition = functional.linear(functional.linear(dropped, self.lora_A), self.lora_B)
        return torch.add(product, addition.to(product.dtype), alpha=self.factor)

    def init_addition(self, generator: torch.Generator | None = None) -> None:
        """Start as nothing: A uniform within 1 / sqrt(in_features), B zero."""
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound, generator=generator)
            self.lora_B.zero_()

    def merged(self) -> Linear:
        """A plain linear that computes the same; the base must not be quantised."""
        assert packing_of(self) is None, "what is merged into is read as plain numbers"
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=self.bias is not None, scale=self.scale)
        # The weight is multiplied by `scale` after the product, the addition is not.
        # In fp64 on the CPU: not every device has that.
        outer, inner, weight = (one.detach().cpu().double() for one in (self.lora_B, self.lora_A, self.weight))
        merged = (weight + (outer @ inner) * (self.factor / self.scale)).to(self.weight.dtype).to(self.weight.device)
        plain.weight = nn.Parameter(merged, requires_grad=self.weight.requires_grad)
        plain.bias = self.bias
        return plain.train(self.training)


def add_lora(
    model: nn.Module, names: Sequence[str], *, rank: int, alpha: float, dropout: float, form: LoraForm
) -> None:
    """Put an (uninitialised) addition on each named linear."""
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear), (name, base)
        model.set_submodule(name, LoraLinear(base, rank=rank, alpha=alpha, dropout=dropout, form=form))


def merge_lora(model: nn.Module) -> None:
    """Work every addition into its base weight; the model is as if it had never been tuned this way."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merged())
