"""Normalisation over the last dimension."""

from __future__ import annotations

import torch
from torch import nn

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
