"""Attention and its masks, over whole rows of a batch or inside windows of them.

A packed row holds samples that never see each other: the square of the whole row is nearly all masked, and the kernels
do not skip what is masked. `AttentionWindows` lays the samples of a row side by side instead, so that only their own
small squares are computed. It saves work and changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch.nn import functional

from hanlin.core.transfer import on_host, to_device
from hanlin.layers.attention_kernels import takes_shared_keys
from hanlin.layers.attention_windows import AttentionWindows
from hanlin.layers.flex import PairScores, pair_attention
from hanlin.layers.varlen import Sequences, varlen_attention


@dataclass(frozen=True)
class AttentionMask:
    """Additive attention bias or boolean mask: made once per forward pass, used by all blocks.

    mask: `[groups or 1, heads or 1, queries, keys]`; a bias that is added to the scores, -inf where the query may not
    look, or bool, True where it may. None: causal, the last query stands at the last key and sees them all.
    empty_queries: bool `[groups, queries]`, where a query sees nothing: its mask is open, its result is set to 0. None:
    every query sees something.
    windows: None = every row of the batch is one group.
    sequences: what the positions of the whole batch are divided into, in place of all of these.
    pairs: what computes bias and mask of the groups where they are used, in place of `mask` and `empty_queries`.
    """

    mask: torch.Tensor | None = None
    empty_queries: torch.Tensor | None = None
    windows: AttentionWindows | None = None
    sequences: Sequences | None = None
    pairs: PairScores | None = None
    _parts: dict[tuple[int | None, int | None, int], AttentionMask] = field(
        default_factory=dict, init=False, repr=False
    )

    def with_prefix(self, length: int, tokens: torch.Tensor) -> AttentionMask:
        """Let every query that sees anything look at `length` keys more, which stand first and have no bias.

        tokens: `[batch, positions]`, those of this forward pass.
        """
        if self.mask is not None:
            is_bool = self.mask.dtype == torch.bool
            mask = functional.pad(self.mask, (length, 0), value=float(is_bool))
            return replace(self, mask=mask if is_bool else _HiddenBias.apply(mask, mask == -torch.inf))
        width = tokens.shape[1] if self.windows is None else self.windows.positions.shape[1]
        mask = None if width == 1 else causal_mask(width, length + width, tokens.device)[None, None]
        return replace(self, mask=mask)

    def additive(self, dtype: torch.dtype) -> AttentionMask:
        """The same for scores of this dtype: what kernels make of a bool mask, made once instead of in each block.

        Not on an NPU, whose kernels take bool masks only.
        """
        if self.mask is None or self.mask.dtype != torch.bool or self.mask.device.type == "npu":
            return self
        open_scores = torch.zeros((), dtype=dtype, device=self.mask.device)
        return replace(self, mask=_HiddenBias.apply(open_scores, ~self.mask))

    def of_rows(self, rows: slice, width: int) -> AttentionMask:
        """The same for some groups and the first `width` keys; every block asks for the same ones."""
        if self.mask is None:
            return self
        place = rows.start, rows.stop, width
        if place not in self._parts:
            mask = self.mask[..., :width] if len(self.mask) == 1 else self.mask[rows, ..., :width]
            empty = None if self.empty_queries is None else self.empty_queries[rows]
            self._parts[place] = replace(self, mask=mask, empty_queries=empty)
        return self._parts[place]


class KeysOfRows(NamedTuple):
    """Keys and values `[rows, kv_heads, keys, head_dim]` of some rows of a batch."""

    rows: slice
    keys: torch.Tensor
    values: torch.Tensor


def attention_by_rows(
    query: torch.Tensor,
    parts: Sequence[KeysOfRows],
    mask: AttentionMask,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """`attention` where some rows have their keys here, others there, and not equally many; all rows in their order.

    Keys that a mask does not reach are hidden, and so is what a mask says of keys that are not there.
    """
    mixed = []
    for rows, keys, values in parts:
        width = keys.shape[2] if mask.mask is None else min(keys.shape[2], mask.mask.shape[-1])
        own, key, value = mask.of_rows(rows, width), keys[:, :, :width], values[:, :, :width]
        mixed.append(attention(query[rows], key, value, own, dropout=dropout, scale=scale))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: AttentionMask,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot product attention; several query heads may share a key and value head (grouped-query attention).

    query: `[groups, heads, queries, head_dim]`; key, value: `[groups, kv_heads, keys, head_dim]`; dropout: share of the
    probabilities that is dropped; scale: factor of the scores, None: 1 / sqrt(head_dim).
    Returns `[groups, queries, heads * head_dim]`.
    """
    repeats = query.shape[1] // key.shape[1]
    if mask.pairs is not None:
        mixed = pair_attention(query, key, value, mask.pairs, scale).transpose(1, 2).flatten(2)
    elif query.shape[2] == 1:
        mixed = _of_lone_query(query, key, value, mask, dropout, scale)
    elif mask.mask is None and query.shape[2] < key.shape[2]:
        mixed = _at_the_end(query, key, value, scale)
    else:
        # CUDA has no fast kernel for a mask together with enable_gqa.
        is_causal = mask.mask is None
        is_grouped = is_causal and repeats > 1 and takes_shared_keys(query)
        if not is_grouped:
            key, value = (for_each_query_head(part, repeats) for part in (key, value))
        options = {"dropout_p": dropout, "is_causal": is_causal, "scale": scale, "enable_gqa": is_grouped}
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.mask, **options)
        mixed = mixed.transpose(1, 2).flatten(2)
    return mixed if mask.empty_queries is None else mixed.masked_fill(mask.empty_queries[..., None], 0)


def _of_lone_query(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: AttentionMask,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """The query heads of a group stand as queries side by side: no copy of a long KV cache."""
    kv_heads = key.shape[1]
    seen = mask.mask
    if seen is not None and query.shape[1] > kv_heads:
        # An NPU's kernel takes a mask for every query only.
        seen = seen.expand(-1, -1, query.shape[1] // kv_heads, -1)
    folded = query.squeeze(2).unflatten(1, (kv_heads, -1))
    return functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=seen, dropout_p=dropout, scale=scale
    ).flatten(1)[:, None]


def _at_the_end(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Causal attention of the last positions of rows to all of them."""
    rows, queries = len(query), query.shape[2]
    sequences = Sequences.of_rows(rows, queries, key.shape[2], query.device)
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    return varlen_attention(query, key, value, sequences, scale).flatten(1).unflatten(0, (rows, queries))


def for_each_query_head(part: torch.Tensor, repeats: int) -> torch.Tensor:
    """`[groups, kv_heads, keys, head_dim]` -> `[groups, kv_heads * repeats, keys, head_dim]`, neighbours alike."""
    if repeats == 1:
        return part
    # Not by repeat_interleave, which NPUs have for neither bf16 nor 4 million numbers and more.
    return part[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2)


def additive_mask(bias: torch.Tensor, visible: torch.Tensor, windows: AttentionWindows | None = None) -> AttentionMask:
    """A bias `[groups, heads, queries, keys]` where `visible` `[groups, queries, keys]`, -inf elsewhere."""
    empty = ~visible.any(-1)
    # A row of -inf only would be NaN in the softmax, and in its gradient.
    hidden = ~visible & ~empty[..., None]
    return AttentionMask(_HiddenBias.apply(bias, hidden[:, None]), empty, windows)


class _HiddenBias(torch.autograd.Function):
    """A bias with -inf where it is hidden, laid out as CUDA's kernels read it: they copy any other, in every block.

    bias, hidden: what has the shape `[groups, heads, queries, keys]` together. The rows of the result lie next to each
    other and begin at multiples of 16 numbers (`preprocess_mask` in torch's attention.cpp).
    """

    @staticmethod
    def forward(ctx, bias: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden)
        ctx.shape = bias.shape
        # Not by torch.broadcast_shapes, which is slow at each step of an answer and imports sympy, a second of work.
        given = (*(1,) * (hidden.dim() - bias.dim()), *bias.shape)
        *shape, width = (one if other == 1 else other for one, other in zip(hidden.shape, given, strict=True))
        rows = bias.new_zeros(*shape, width + -width % 16)
        return rows[..., :width].copy_(bias).masked_fill_(hidden, -torch.inf)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (hidden,) = ctx.saved_tensors
        return gradient.masked_fill(hidden, 0).sum_to_size(ctx.shape), None


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> torch.Tensor:
    """Which keys a query may look at when the last query stands at the last key: bool `[queries, keys]`."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def same_span(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys belong to the query's sample: bool `[batch, queries, keys]`; padding sees padding.

    queries, keys: their spans, `[batch, length]` each.
    """
    return queries[:, :, None] == keys[:, None, :]


@dataclass(frozen=True)
class Branches:
    """Positions that go on from some place of their sample's trunk, beside its own rest.

    branch: `[batch, length]`, equal for the positions of one branch of a row; position: their places in the text; fork:
    the position of the branch's first one, 0 in the trunk.
    """

    branch: torch.Tensor
    position: torch.Tensor
    fork: torch.Tensor

    @staticmethod
    def of(branches: torch.Tensor, positions: torch.Tensor) -> Branches:
        """branches: `[batch, length]`, the column at which the branch of each position begins, that of the sample's
        first position in the trunk; positions: `[batch, length]`, counted from 0 in each sample.
        """
        return Branches(branches, positions, positions.gather(1, branches))

    def within(self, windows: AttentionWindows) -> Branches:
        return Branches(*map(windows.group_numbers, (self.branch, self.position, self.fork)))

    @property
    def visible(self) -> torch.Tensor:
        """Which keys belong to the query's branch, or stand before it in the trunk: bool `[batch, queries, keys]`."""
        own = same_span(self.branch, self.branch)
        return own | ((self.fork == 0)[:, None, :] & (self.position[:, None, :] < self.fork[:, :, None]))


def packed_sequences(spans: torch.Tensor, prefix: int = 0) -> AttentionMask:
    """`packed_causal_mask` without branches, for a kernel that takes sequences; prefix: keys before those of each."""
    on_cpu = on_host(spans)
    rows, length = on_cpu.shape
    is_first = torch.ones(rows, length, dtype=torch.bool)
    is_first[:, 1:] = on_cpu[:, 1:] != on_cpu[:, :-1]
    is_whole = bool((is_first[:, 1:] & (on_cpu[:, 1:] >= 0)).sum() == 0)
    if is_whole and not prefix:
        return AttentionMask()  # nobody looks ahead, so padding on the right disturbs nobody
    starts = torch.cat((is_first.flatten().nonzero().flatten(), torch.tensor([rows * length])))
    return AttentionMask(sequences=Sequences.of_lengths(starts.diff().tolist(), prefix, spans.device))


def packed_causal_mask(spans: torch.Tensor, branches: Branches | None = None) -> AttentionMask:
    """Causal mask within each sample of packed rows; a sample is a run of one number in `spans` `[batch, length]`.

    Below 0 is padding, whose results mean nothing. The bounds of the spans are read by the CPU.
    """
    length = spans.shape[1]
    runs = _runs(on_host(spans))
    if branches is None and all(len(row) <= 1 and (not row or row[0][0] == 0) for row in runs):
        return AttentionMask()  # nobody looks ahead, so padding on the right disturbs nobody
    shared = _share_windows(runs)
    width = max(end - begin for row in shared for begin, end in row)
    count = max(map(len, shared))
    if count * width * width >= length * length:
        return AttentionMask(_causal_in_span(spans, branches))
    positions = torch.full((len(shared), count, width), -1)
    for number, row in enumerate(shared):
        for window, (begin, end) in enumerate(row):
            positions[number, window, : end - begin] = torch.arange(begin, end)
    windows = AttentionWindows.of(to_device({"windows": positions}, spans.device)["windows"], length)
    if branches is None and sum(map(len, shared)) == sum(map(len, runs)):
        return AttentionMask(windows=windows)
    within = None if branches is None else branches.within(windows)
    return AttentionMask(_causal_in_span(windows.group_numbers(spans), within), windows=windows)


def branched_causal_mask(branches: Branches) -> AttentionMask:
    """Causal mask of rows that hold one sample each, with its branches."""
    length = branches.branch.shape[1]
    return AttentionMask((branches.visible & causal_mask(length, length, branches.branch.device))[:, None])


def cached_causal_mask(spans: torch.Tensor, known: torch.Tensor) -> AttentionMask:
    """Causal mask of new positions over all in the KV cache, themselves included, within their own sample.

    spans: `[batch, new]`; known: `[batch, all]`.
    """
    visible = same_span(spans, known)
    if spans.shape[1] > 1:
        visible = visible & causal_mask(spans.shape[1], known.shape[1], spans.device)
    return AttentionMask(visible[:, None])


def _causal_in_span(spans: torch.Tensor, branches: Branches | None = None) -> torch.Tensor:
    visible = same_span(spans, spans) & causal_mask(spans.shape[1], spans.shape[1], spans.device)
    return (visible if branches is None else visible & branches.visible)[:, None]


def _runs(spans: torch.Tensor) -> list[list[tuple[int, int]]]:
    """First position and end of every run of equal numbers from 0 on, row by row."""
    is_first = spans[:, 1:] != spans[:, :-1]
    rows: list[list[tuple[int, int]]] = [[] for _ in spans]
    starts: list[list[int]] = [[0] for _ in spans]
    for row, position in is_first.nonzero().tolist():
        starts[row].append(position + 1)
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
