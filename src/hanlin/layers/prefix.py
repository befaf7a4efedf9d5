"""Keys and values that stand before a block's own and are seen by every query (P-Tuning v2, Liu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Prefix:
    """One block's prefix: `[kv_heads, length, head_dim]`, any dtype; dropout: share that each row drops anew."""

    keys: torch.Tensor
    values: torch.Tensor
    dropout: float = 0.0

    def before(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the prefix before keys and values `[rows, kv_heads, columns, head_dim]`."""
        return self._joined(self.keys, keys), self._joined(self.values, values)

    def _joined(self, prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        repeated = prefix.to(own.dtype).expand(own.shape[0], -1, -1, -1)
        return torch.cat((functional.dropout(repeated, self.dropout, self.dropout > 0), own), dim=2)


class PrefixSource(nn.Module):
    """What a model holds as its `prefix`: called without arguments, it gives each block's `Prefix` by its name."""

    length: int

    def forward(self) -> dict[str, Prefix]:
        raise NotImplementedError
