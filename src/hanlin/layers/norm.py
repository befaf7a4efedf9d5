"""Normalisation over the last dimension."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hanlin.layers.precision import at_least_fp32


class RmsNorm(nn.Module):
    """Division by the root mean square, computed in fp32, then a weight; no bias, no mean."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = at_least_fp32(hidden)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        # The cast comes before the weight, as the originals do it; it matters in fp16.
        return normed.to(hidden.dtype) * self.weight


class WideRmsNorm(nn.Module):
    """`RmsNorm` whose weight is applied in fp32 as well, before the cast; the result has the weight's dtype.

    It differs from `RmsNorm` in the last bit of half precision, and where the hidden state is wider than the weights.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if hidden.dtype != weight.dtype:
            hidden, weight = at_least_fp32(hidden), at_least_fp32(weight)
        return functional.rms_norm(hidden, weight.shape, weight, self.eps).to(self.weight.dtype)


class LayerNorm(nn.Module):
    """Mean and variance, a weight and a bias, all in fp32; the result has the weight's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = at_least_fp32(self.weight), at_least_fp32(self.bias)
        normed = functional.layer_norm(at_least_fp32(hidden), weight.shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)
