"""A linear layer whose output may carry a constant factor."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Linear(nn.Linear):
    """`nn.Linear` whose output is multiplied by `scale` after the product (CPM-Bee: 1 / sqrt(in_features)).

    The factor stands outside the weight, so weights and low-rank additions keep the original's values.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, scale: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product = functional.linear(input, self.weight, self.bias)
        return product if self.scale == 1.0 else product * self.scale


@torch.no_grad()
def store_by_columns(model: nn.Module) -> None:
    """Lay frozen fp32 matrices out column by column in memory; shapes and numbers stay.

    A CPU multiplies a single row (decoding) by such a matrix twice as fast: it reads and adds in one order. Products of
    many rows take as long as before. Only the rounding of sums changes.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() == 2 and weight.dtype == torch.float32 and not weight.requires_grad:
                weight.data = weight.data.t().contiguous().t()
