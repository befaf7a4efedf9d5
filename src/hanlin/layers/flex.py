"""Attention whose bias and mask are computed pair by pair, where they are used, by `flex_attention`.

A bias of long rows would be larger than all else: 32 heads of 8,192 positions are 4 GiB in half precision. What a pair
adds to its score is a row of a table here, found from facts of query and key by a few operations (a `PairRule`).
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from hanlin.layers.precision import matmul_dtype

__all__ = ["PairRule", "PairScores", "compiled", "flex_attention_of", "pair_attention", "plain_pairs", "rehearse_flex"]


_MOST_CODES = 64
"""That are compiled of a function. torch's own limit is 8, and behind it the whole square is made without a word."""


class PairRule(Protocol):
    """What is to be known of the pair of a query and a key. All arguments are numbers, or tensors of such that fit
    together: the group, and the positions in it.
    """

    def sees(self, group: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether the query may look at the key."""
        ...

    def row(self, group: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The row of the table that is added to the score."""
        ...


@dataclass(frozen=True)
class PairScores:
    """table: `[rows, heads]`, what is added to the scores of each head; shape: groups, queries, keys; blocks: which
    blocks of the square anybody looks at, None where no kernel asks.
    """

    rule: PairRule
    table: torch.Tensor
    shape: tuple[int, ...]
    blocks: Any = None

    @staticmethod
    def of(rule: PairRule, table: torch.Tensor, shape: tuple[int, ...]) -> PairScores:
        scores = PairScores(rule, table, shape)
        return scores if table.device.type != "cuda" else scores.with_blocks(compiled(_create_block_mask))

    def with_blocks(self, create: Any) -> PairScores:
        rule, (groups, queries, keys) = self.rule, self.shape

        def sees(group: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
            del head
            return rule.sees(group, query, key)

        blocks = create(sees, groups, None, queries, keys, device=self.table.device)
        return PairScores(rule, self.table, self.shape, blocks)


def pair_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: PairScores, scale: float | None = None
) -> torch.Tensor:
    """query: `[groups, heads, queries, head_dim]`; key, value: `[groups, kv_heads, keys, head_dim]`. Queries that see
    nothing get 0. Returns `[groups, heads, queries, head_dim]`.
    """
    if has_torch_function((query, key, value)):
        return handle_torch_function(pair_attention, (query, key, value), query, key, value, scores=scores, scale=scale)
    dtype = matmul_dtype(query)
    query, key, value = (part.to(dtype) for part in (query, key, value))
    if scores.blocks is None:
        return plain_pairs(query, key, value, scores, scale)
    return flex_attention_of(_compiled(), query, key, value, scores, scale)


def flex_attention_of(
    flex: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: PairScores, scale: float | None
) -> torch.Tensor:
    """By `flex`, which is torch's `flex_attention`, compiled or not."""
    is_grouped, rule, table = query.shape[1] != key.shape[1], scores.rule, scores.table

    def add(score: torch.Tensor, group: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return score + table[rule.row(group, query, key), head]

    return flex(query, key, value, add, scores.blocks, scale=scale, enable_gqa=is_grouped)


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention)


def compiled(function: Any, backend: Any = "inductor") -> Any:
    """One code for all lengths and all objects of a rule; another for each kind of rule, for a single group, for rows
    within one block, and without gradients.
    """
    options: dict[str, Any] = {"dynamic": True, "backend": backend}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:  # torch 2.11 has none
        options["recompile_limit"] = _MOST_CODES
    return torch.compile(function, **options)


def _create_block_mask(*args: Any, **options: Any) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(*args, **options)


def plain_pairs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: PairScores, scale: float | None = None
) -> torch.Tensor:
    """The same by plain products, with the whole square."""
    groups, queries, keys = (torch.arange(count, device=query.device) for count in scores.shape)
    places = (groups[:, None, None], queries[:, None], keys)
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in (key, value))
    bias = functional.embedding(scores.rule.row(*places).expand(scores.shape), scores.table).movedim(-1, 1)
    found = (query @ key.transpose(-1, -2)).float() * (scale or 1 / math.sqrt(query.shape[-1])) + bias
    visible = scores.rule.sees(*places).expand(scores.shape)[:, None]
    empty = ~visible.any(-1, keepdim=True)
    shares = found.masked_fill(~visible & ~empty, -torch.inf).softmax(-1).to(value.dtype)
    return (shares @ value).masked_fill(empty, 0)


@dataclass(frozen=True)
class _Distances:
    """Spans that see themselves, and a bias by distance; for a rehearsal."""

    spans: torch.Tensor

    def sees(self, group: Any, query: Any, key: Any) -> torch.Tensor:
        return (self.spans[group, query] == self.spans[group, key]) & (self.spans[group, query] >= 0)

    def row(self, group: Any, query: Any, key: Any) -> torch.Tensor:
        del group
        return (key - query).abs().clamp(max=7)


def rehearse_flex(device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """The greatest difference from plain products in fp32 among result and gradients, as a share of the greatest."""
    spans = torch.tensor([[0] * 100 + [1] * 90 + [-1] * 10]).to(device)

    def run(compute: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, 4, 200, head_dim)] * 3
        parts = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
        table = torch.randn(8, 4, generator=generator).to(device).requires_grad_()
        mixed = compute(*parts, PairScores.of(_Distances(spans), table, (1, 200, 200)))
        mixed.float().square().sum().backward()
        return [mixed.detach().float(), *(part.grad.float() for part in (*parts, table) if part.grad is not None)]

    pairs = zip(run(pair_attention, dtype), run(plain_pairs, torch.float32), strict=True)
    gaps = [(one - other).abs().max() / other.abs().max() for one, other in pairs]
    return float(torch.stack(gaps).nan_to_num(torch.inf).max())
