"""Attention of samples that lie one behind the other, without a mask, and without a copy of shared keys.

Flash attention of CUDA takes such sequences of any lengths as they lie in packed rows (`torch.nn.attention.varlen`).
Elsewhere plain products compute the same, for comparison: there is no other kernel for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from hanlin.core.transfer import to_device
from hanlin.layers.attention_windows import Regroup
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import Prefix

__all__ = ["Sequences", "plain_varlen", "rehearse_varlen", "varlen_attention"]


@dataclass(frozen=True)
class Sequences:
    """Runs of positions without gaps between them, each with keys of its own; nobody looks ahead, and the last query of
    a sequence stands at its last key.

    query_bounds, key_bounds: int32 `[sequences + 1]`, where each one begins among all queries and all keys, and the end
    of the last; most_queries, most_keys: of the longest one; key_places: with a prefix, which of all own keys and the
    prefixes behind them stand at each place, and the places of each, `[keys]` both.
    """

    query_bounds: torch.Tensor
    key_bounds: torch.Tensor
    most_queries: int
    most_keys: int
    key_places: tuple[torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def of_rows(rows: int, queries: int, keys: int, device: torch.device) -> Sequences:
        """Rows that have equally many queries, and equally many keys."""
        bounds = torch.arange(rows + 1, dtype=torch.int32, device=device)
        return Sequences(bounds * queries, bounds * keys, queries, keys)

    @staticmethod
    def of_lengths(lengths: list[int], prefix: int, device: torch.device) -> Sequences:
        """lengths: of each sequence, 1 or more; prefix: keys before those of each."""
        total, most = sum(lengths), max(lengths)
        query_bounds = torch.tensor([0, *lengths]).cumsum(0)
        key_bounds = query_bounds + torch.arange(len(query_bounds)) * prefix
        tensors = {"queries": query_bounds.int(), "keys": key_bounds.int()}
        if prefix:
            numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths), output_size=total)
            own = torch.arange(total) + (numbers + 1) * prefix
            before = key_bounds[:-1, None] + torch.arange(prefix)
            tensors["places"] = torch.cat((own, before.flatten()))
            tensors["order"] = torch.empty_like(tensors["places"])
            tensors["order"][tensors["places"]] = torch.arange(total + before.numel())
        there = to_device(tensors, device)
        places = (there["order"], there["places"]) if prefix else None
        return Sequences(there["queries"], there["keys"], most, most + prefix, places)

    def with_prefix(self, prefix: Prefix, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values `[positions, kv_heads, head_dim]` with the prefix before those of each sequence."""
        return self._joined(prefix, prefix.keys, keys), self._joined(prefix, prefix.values, values)

    def _joined(self, prefix: Prefix, before: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        assert self.key_places is not None, "these sequences have no room for a prefix"
        each = prefix.of_rows(len(self.query_bounds) - 1, before, own.dtype).transpose(1, 2)
        return Regroup.apply(torch.cat((own, each.flatten(0, 1))).flatten(1), *self.key_places).view(-1, *own.shape[1:])


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, scale: float | None = None
) -> torch.Tensor:
    """Attention within each sequence; several query heads may share a key and value head.

    query: `[queries, heads, head_dim]`; key, value: `[keys, kv_heads, head_dim]`; scale: factor of the scores, None:
    1 / sqrt(head_dim). Returns `[queries, heads, head_dim]`.
    """
    if has_torch_function((query, key, value)):
        return handle_torch_function(
            varlen_attention, (query, key, value), query, key, value, sequences=sequences, scale=scale
        )
    dtype = matmul_dtype(query)  # autocast does not know this kernel
    query, key, value = (part.to(dtype) for part in (query, key, value))
    if query.device.type != "cuda":
        return plain_varlen(query, key, value, sequences, scale)
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": (-1, 0), "scale": scale}
    if "enable_gqa" in (varlen_attn.__kwdefaults__ or {}):  # torch 2.11 takes fewer heads of keys without a word
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    bounds = (sequences.query_bounds, sequences.key_bounds, sequences.most_queries, sequences.most_keys)
    mixed = varlen_attn(query.contiguous(), key.contiguous(), value.contiguous(), *bounds, **options)
    assert isinstance(mixed, torch.Tensor), "nothing else was asked for"
    return mixed


def plain_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, scale: float | None = None
) -> torch.Tensor:
    """`varlen_attention` by plain products over all queries and keys together."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * (scale or 1 / math.sqrt(query.shape[-1]))
    own, before = _places(sequences.query_bounds, len(query))
    theirs, far = _places(sequences.key_bounds, len(key))
    # Counted from the end of its sequence, a query stands at the key of the same number.
    visible = (own[:, None] == theirs) & (far >= before[:, None])
    shares = scores.float().masked_fill(~visible, -torch.inf).softmax(-1).to(value.dtype)
    return torch.einsum("hqk,khd->qhd", shares, value)


def _places(bounds: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each position the number of its sequence, and how far it is from the end of that."""
    positions = torch.arange(count, device=bounds.device)
    ends = bounds[1:].long()
    numbers = (positions[:, None] >= ends).sum(-1)
    return numbers, ends[numbers] - positions


def rehearse_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """The greatest difference from plain products in fp32 among result and gradients, as a share of the greatest."""
    generator = torch.Generator().manual_seed(0)
    sequences = Sequences.of_lengths([3, 70], 5, device)

    def run(compute: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        generator.manual_seed(0)
        shapes = ((73, 4, head_dim), (83, 2, head_dim), (83, 2, head_dim))
        parts = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
        mixed = compute(*parts, sequences)
        mixed.float().square().sum().backward()
        return [mixed.detach().float(), *(part.grad.float() for part in parts if part.grad is not None)]

    found = run(varlen_attention, dtype)
    expected = run(plain_varlen, torch.float32)
    gaps = [(one - other).abs().max() / other.abs().max() for one, other in zip(found, expected, strict=True)]
    return float(torch.stack(gaps).nan_to_num(torch.inf).max())
