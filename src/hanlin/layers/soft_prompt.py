"""Trained vectors that stand among the embedded tokens of a row (Lester et al. 2021), written as negative ids.

Prompt i (from 0) is the id -(i + 1). It counts in positions, lengths and masks like any token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class SoftPrompt(nn.Module):
    """`length` vectors; sees_tokens, is_seen: whether prompts look at tokens, and tokens at prompts."""

    def __init__(self, length: int, hidden_size: int, *, sees_tokens: bool = True, is_seen: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, hidden_size))
        self.sees_tokens = sees_tokens
        self.is_seen = is_seen
        self.added = ("weight",)

    def forward(self, tokens: torch.Tensor, embedding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Vectors of ids `[batch, length]`: from the table below 0, else from the embedding."""
        is_prompt = tokens < 0
        prompts = nn.functional.embedding((-tokens - 1).clamp(min=0), self.weight)
        embedded = embedding(tokens.clamp(min=0))
        return torch.where(is_prompt[..., None], prompts.to(embedded.dtype), embedded)

    def restrict(self, visible: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Take from `visible` `[batch, queries, keys]` what prompts and tokens hide from each other."""
        is_prompt = tokens < 0
        if not self.is_seen:  # kept: where both are hidden the original forgets about the other
            return visible & (is_prompt[:, :, None] | ~is_prompt[:, None, :])
        if not self.sees_tokens:
            return visible & (~is_prompt[:, :, None] | is_prompt[:, None, :])
        return visible
