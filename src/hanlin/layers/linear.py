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
