"""Attention of every column to the columns it may see, over whole rows or inside windows of them.

A packed row holds samples that never see each other: the square of the whole row is nearly all masked, and the kernels
do not skip what is masked. `Windows` lays the samples of a row side by side instead, so that only their own small
squares are computed. It saves work and changes no number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Windows:
    """Where the columns of rows `[rows, length]` stand when they are grouped into windows `[groups, width]`.

    columns: `[groups, width]`, number of the column in the flattened rows, -1 = padding;
    places: `[rows * length]`, number of the place in the flattened windows, -1 = in no window.
    """

    columns: torch.Tensor
    places: torch.Tensor

    @staticmethod
    def of(windows: torch.Tensor, length: int) -> Windows:
        """windows: `[rows, windows, width]` columns inside the row, -1 = padding; no column stands in two windows."""
        num_rows = windows.shape[0]
        starts = torch.arange(num_rows, device=windows.device)[:, None, None] * length
        columns = torch.where(windows >= 0, windows + starts, -1).flatten(0, 1)
        places = columns.new_full((num_rows * length + 1,), -1)
        # All padding writes to the extra last entry.
        places[columns.flatten().where(columns.flatten() >= 0, num_rows * length)] = torch.arange(
            columns.numel(), device=columns.device
        )
        return Windows(columns, places[:-1])

    def facts(self, facts: torch.Tensor) -> torch.Tensor:
        """Numbers `[rows, length]` -> `[groups, width]`; padding gets the first column's."""
        return facts.flatten()[self.columns.clamp(min=0)]

    def group(self, vectors: torch.Tensor) -> torch.Tensor:
        """`[rows, length, size]` -> `[groups, width, size]`; padding is 0."""
        grouped = _Regroup.apply(vectors.flatten(0, 1), self.columns.flatten(), self.places)
        return grouped.unflatten(0, self.columns.shape)

    def spread(self, vectors: torch.Tensor, length: int) -> torch.Tensor:
        """`[groups, width, size]` -> `[rows, length, size]`; columns in no window are 0."""
        spread = _Regroup.apply(vectors.flatten(0, 1), self.places, self.columns.flatten())
        return spread.unflatten(0, (-1, length))


class _Regroup(torch.autograd.Function):
    """Take rows by `index` (-1 = zeros); `inverse` says where each row went, so the gradient is a taking as well."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return _take(rows, index)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (inverse,) = ctx.saved_tensors
        return _take(gradient, inverse), None, None


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return rows.index_select(0, index.clamp(min=0)).masked_fill_((index < 0)[:, None], 0)


@dataclass(frozen=True)
class Sight:
    """Who sees whom, and how gladly: made once per forward pass, used by all blocks.

    bias: `[groups, heads, queries, keys]` added to the scores, -inf where the query may not look;
    blind: `[groups, queries]` True where a query sees nothing (its bias is finite, its result is set to 0);
    windows: None = every row is one group.
    """

    bias: torch.Tensor
    blind: torch.Tensor
    windows: Windows | None = None

    @staticmethod
    def of(bias: torch.Tensor, visible: torch.Tensor, windows: Windows | None = None) -> Sight:
        """bias: `[groups, heads, queries, keys]`; visible: `[groups, queries, keys]`."""
        blind = ~visible.any(-1)
        # A row of -inf only would be NaN in the softmax, and in its gradient.
        hidden = ~visible & ~blind[..., None]
        return Sight(bias.masked_fill(hidden[:, None], float("-inf")), blind, windows)

    def with_prefix(self, length: int) -> Sight:
        """Let every query that sees anything look at `length` keys more, which stand first and have no bias."""
        return Sight(functional.pad(self.bias, (length, 0)), self.blind, self.windows)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sight: Sight,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """Mix the values a query sees: `[groups, heads, columns, head_dim]` -> `[groups, queries, heads * head_dim]`.

    scale: factor of the scores; None: 1 / sqrt(head_dim).
    """
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=sight.bias, dropout_p=dropout, scale=scale
    )
    return mixed.transpose(1, 2).flatten(2).masked_fill(sight.blind[..., None], 0)


def attend_grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Mix the values a query sees, where several query heads share a key and value head.

    query: `[groups, heads, columns, head_dim]`; key, value: `[groups, kv_heads, keys, head_dim]`;
    visible: bool `[groups or 1, 1, queries, keys]`, every query sees something; None: a query sees the keys up to its
    own column, or all of them if it is alone. dropout: share of the probabilities that is dropped.
    Returns `[groups, queries, heads * head_dim]`.
    """
    kv_heads = key.shape[1]
    if query.shape[2] == 1:
        # The query heads of a group stand as queries side by side: no copy of a long KV cache.
        folded = query.squeeze(2).unflatten(1, (kv_heads, -1))
        return functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=visible, dropout_p=dropout
        ).flatten(1)[:, None]
    shares = query.shape[1] // kv_heads
    if visible is None:
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=shares > 1, dropout_p=dropout
        )
    else:
        # CUDA has no fast kernel for a mask together with enable_gqa.
        key, value = (part.repeat_interleave(shares, dim=1) if shares > 1 else part for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def sees_earlier(queries: int, keys: int, device: torch.device | None = None) -> torch.Tensor:
    """Which keys a query may look at when the last query stands at the last key: bool `[queries, keys]`."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


@dataclass(frozen=True)
class SpanSight:
    """Who sees whom where every column sees the earlier ones of its own span, and itself.

    visible: bool `[groups or 1, 1, queries, keys]`, or None: see `attend_grouped`; windows: None = a row is one group.
    """

    visible: torch.Tensor | None = None
    windows: Windows | None = None

    def with_prefix(self, length: int, spans: torch.Tensor) -> SpanSight:
        """Let all columns of `spans` `[rows, columns]` look at `length` keys more, which stand first."""
        if self.visible is not None:
            return SpanSight(functional.pad(self.visible, (length, 0), value=True), self.windows)
        width = spans.shape[1] if self.windows is None else self.windows.columns.shape[1]
        visible = None if width == 1 else sees_earlier(width, length + width, spans.device)[None, None]
        return SpanSight(visible, self.windows)


def look_at_own(spans: torch.Tensor) -> SpanSight:
    """Sight within rows of samples, each a run of columns with its own number in `spans` `[rows, length]`.

    Below 0 is padding, whose results mean nothing. The bounds of the spans are read by the CPU.
    """
    length = spans.shape[1]
    runs = _runs(spans)
    if all(len(row) <= 1 and (not row or row[0][0] == 0) for row in runs):
        return SpanSight()  # nobody looks ahead, so padding on the right disturbs nobody
    shared = _share_windows(runs)
    width = max(end - begin for row in shared for begin, end in row)
    count = max(map(len, shared))
    if count * width * width >= length * length:
        return SpanSight(_earlier_in_span(spans))
    columns = torch.full((len(shared), count, width), -1)
    for number, row in enumerate(shared):
        for window, (begin, end) in enumerate(row):
            columns[number, window, : end - begin] = torch.arange(begin, end)
    windows = Windows.of(columns.to(spans.device), length)
    if sum(map(len, shared)) == sum(map(len, runs)):
        return SpanSight(None, windows)
    return SpanSight(_earlier_in_span(windows.facts(spans)), windows)


def look_back(spans: torch.Tensor, known: torch.Tensor) -> SpanSight:
    """Sight of new columns on all so far, themselves included; spans: `[rows, new]`; known: `[rows, all]`."""
    visible = spans[:, :, None] == known[:, None, :]
    if spans.shape[1] > 1:
        visible = visible & sees_earlier(spans.shape[1], known.shape[1], spans.device)
    return SpanSight(visible[:, None])


def _earlier_in_span(spans: torch.Tensor) -> torch.Tensor:
    is_own = spans[:, :, None] == spans[:, None, :]
    return (is_own & sees_earlier(spans.shape[1], spans.shape[1], spans.device))[:, None]


def _runs(spans: torch.Tensor) -> list[list[tuple[int, int]]]:
    """First column and end of every run of equal numbers from 0 on, row by row."""
    is_first = spans[:, 1:] != spans[:, :-1]
    rows: list[list[tuple[int, int]]] = [[] for _ in spans]
    starts: list[list[int]] = [[0] for _ in spans]
    for row, column in is_first.nonzero().tolist():
        starts[row].append(column + 1)
    for number, (begins, row) in enumerate(zip(starts, spans.tolist(), strict=True)):
        ends = [*begins[1:], len(row)]
        rows[number] = [(begin, end) for begin, end in zip(begins, ends, strict=True) if row[begin] >= 0]
    return rows


def _share_windows(runs: list[list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    """Let neighbours share a window while they fit into the width of the longest run."""
    longest = max(end - begin for row in runs for begin, end in row)
    shared = []
    for row in runs:
        windows: list[tuple[int, int]] = []
        for begin, end in row:
            if windows and windows[-1][1] == begin and end - windows[-1][0] <= longest:
                windows[-1] = (windows[-1][0], end)
            else:
                windows.append((begin, end))
        shared.append(windows)
    return shared
