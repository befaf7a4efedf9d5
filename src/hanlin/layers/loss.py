"""The output head and its cross entropy in one, without ever holding the logits of more than a few rows.

Only labelled positions are projected. Their gradients are computed in the forward pass, chunk by chunk while the
logits are there, so the backward pass only multiplies by a number.

A table may be one rank's part of a vocabulary (`VocabularyPartition`): then hidden states, labels and results are those
of all ranks of the table, and the same on each of them.

What is made of the logits of a chunk is a `Comparison`: the cross entropy or, while `comparing` says so, another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import torch

from hanlin.core.labels import at_places, labelled_places
from hanlin.layers.linear import product
from hanlin.layers.precision import at_least_fp32, matmul_dtype

CHUNK_ROWS = 256
"""Rows whose logits a CPU holds at once; speed is flat from 128 to 512 (2 cores)."""
ACCELERATOR_CHUNK_ROWS = 1024
"""The same of other devices. Each chunk reads and writes the whole table's gradient: for 65,024 x 4,096 fp32 numbers
that are 0.65 ms of an H100's memory, beside 0.9 ms for the products of 256 rows (computed; not measured).
"""

HeadPart = tuple[torch.Tensor, float]
"""A part of the head: (weight `[vocab part, hidden_size]`, factor of its logits); parts follow each other."""


@dataclass(frozen=True)
class LabelledRows:
    """What a head is asked for. hidden: `[rows, hidden_size]`, of the labelled positions; pieces: of the head; classes,
    weights: `[rows]`.
    """

    hidden: torch.Tensor
    pieces: Sequence[HeadPart]
    classes: torch.Tensor
    weights: torch.Tensor


class Comparison(Protocol):
    """What is made of the logits of labelled rows, a chunk at a time."""

    def losses(self, rows: torch.Tensor, parts: HeadParts, chunk: slice) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """The losses `[chunk]`, and what `slopes` needs. rows: `[chunk, hidden_size]`."""
        ...

    def slopes(self, made: Sequence[torch.Tensor], parts: HeadParts, chunk: slice) -> Sequence[torch.Tensor]:
        """The derivatives of the losses by the logits, for each part `[chunk, vocab part]`."""
        ...


Compare = Callable[[LabelledRows], Comparison | None]
"""None: nothing is to be computed, and each loss is 0."""

_compare: ContextVar[Compare | None] = ContextVar("compare", default=None)


@contextmanager
def comparing(compare: Compare) -> Iterator[None]:
    """While this is open, `head_loss` asks what it is to compute; else it is the cross entropy."""
    before = _compare.set(compare)
    try:
        yield
    finally:
        _compare.reset(before)


class VocabularyPartition(Protocol):
    """What a table that is one rank's part of a vocabulary bears as its attribute `share`.

    start: the first row of the vocabulary that it holds; total: rows of the whole.
    """

    start: int
    total: int

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place; no gradient."""
        ...

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """The greatest of the ranks, in place; no gradient."""
        ...

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of all ranks' parts behind each other."""
        ...

    def enter(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same values; the gradients of all ranks are added."""
        ...


def share_of(table: torch.Tensor) -> VocabularyPartition | None:
    """None: the table is whole."""
    return getattr(table, "share", None)


def head_logits(hidden: torch.Tensor, pieces: Sequence[HeadPart]) -> torch.Tensor:
    """Logits `[batch, length, vocab of all parts]`."""
    parts = []
    for table, factor in pieces:
        share = share_of(table)
        scaled = hidden if factor == 1 else hidden * factor
        logits = product(scaled if share is None else share.enter(scaled), table)
        parts.append(logits if share is None else share.join(logits))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def head_loss(
    hidden: torch.Tensor,
    pieces: Sequence[HeadPart],
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """The weighted cross entropy of the labelled positions: their sum (a scalar, at least fp32) or `[batch, length]`.

    hidden: `[batch, length, hidden_size]`; labels: `[batch, length]`, -100 = not in the loss; weights: the same, or
    None = 1 each. "none" has no gradient.
    """
    places = labelled_places(labels)
    rows, classes = at_places(hidden, places), at_places(labels, places).long()
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    shares = torch.ones_like(classes, dtype=dtype) if weights is None else at_places(weights, places).to(dtype)
    compare, asked = _compare.get(), LabelledRows(rows, pieces, classes, shares)
    comparison = CrossEntropy(classes) if compare is None else compare(asked)
    if comparison is None:
        return shares.new_zeros(() if reduction == "sum" else labels.shape)
    if reduction == "sum":
        factors = tuple(factor for _, factor in pieces)
        tables = [table for table, _ in pieces]
        return _SummedLoss.apply(rows, comparison, shares, factors, torch.is_grad_enabled(), *tables)
    return _spread(_losses(rows.detach(), pieces, comparison) * shares, labels, places)


def weighted(
    values: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, reduction: Literal["sum", "none"]
) -> torch.Tensor:
    """The losses `[labelled positions]` by their weights: their sum, or each at its place `[batch, length]`.

    labels, weights: `[batch, length]`. "none" has no gradient.
    """
    places = labelled_places(labels)
    if weights is not None:
        values = values * at_places(weights, places).to(values.dtype)
    return values.sum() if reduction == "sum" else _spread(values.detach(), labels, places)


def _spread(losses: torch.Tensor, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Each loss at its place `[batch, length]`, 0 elsewhere."""
    return losses.new_zeros(labels.numel()).index_copy(0, places, losses).view_as(labels)


def _losses(rows: torch.Tensor, pieces: Sequence[HeadPart], comparison: Comparison) -> torch.Tensor:
    parts = HeadParts(pieces, matmul_dtype(rows))
    return torch.cat([comparison.losses(rows[chunk], parts, chunk)[0] for chunk in _chunks(rows)])


def _chunks(rows: torch.Tensor) -> list[slice]:
    """At least one, so that a head without labelled rows has a loss."""
    size = CHUNK_ROWS if rows.device.type == "cpu" else ACCELERATOR_CHUNK_ROWS
    return [slice(start, start + size) for start in range(0, len(rows), size)] or [slice(0, 0)]


class HeadParts:
    """The tables in the dtype of the product, and the class of each one's first row."""

    def __init__(self, pieces: Sequence[HeadPart], dtype: torch.dtype) -> None:
        tables = [table for table, _ in pieces]
        self.tables = [table.detach().to(dtype) for table in tables]
        self.factors = [factor for _, factor in pieces]
        self.shares = [share_of(table) for table in tables]
        sizes = [len(table) if share is None else share.total for table, share in zip(tables, self.shares, strict=True)]
        begins = accumulate(sizes, initial=0)
        self.starts = [begin + (share.start if share else 0) for begin, share in zip(begins, self.shares, strict=False)]
        self.share = next((share for share in self.shares if share is not None), None)

    def logits(self, rows: torch.Tensor) -> list[torch.Tensor]:
        # The factor goes to the hidden state, which is small (kept: the original does so in fp16).
        return [
            at_least_fp32(product((rows * factor).to(table.dtype), table))
            for table, factor in zip(self.tables, self.factors, strict=True)
        ]

    def maximum(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """The greatest logit of each row `[rows]`, on whichever ranks it is."""
        peak = torch.stack([part.amax(-1) for part in logits]).amax(0)
        return peak if self.share is None else self.share.maximum(peak)

    def picked(self, logits: Sequence[torch.Tensor], classes: torch.Tensor) -> list[torch.Tensor]:
        """The logit of each row's class where a part holds it, else 0."""
        return [_pick(part, classes, start) for part, start in zip(logits, self.starts, strict=True)]

    def sum(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum of one tensor per part over the parts, on whichever ranks they are."""
        whole = [value for value, share in zip(values, self.shares, strict=True) if share is None]
        shared = [value for value, share in zip(values, self.shares, strict=True) if share is not None]
        if self.share is not None:
            whole.append(self.share.sum(torch.stack(shared).sum(0)))
        return torch.stack(whole).sum(0)


class CrossEntropy:
    """The `Comparison` with labels. classes: `[rows]`."""

    def __init__(self, classes: torch.Tensor) -> None:
        self.classes = classes

    def losses(self, rows: torch.Tensor, parts: HeadParts, chunk: slice) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """The losses, and the probabilities per part, which take the place of the logits."""
        logits = parts.logits(rows)
        wanted = parts.picked(logits, self.classes[chunk])
        if len(logits) == 1 and parts.share is None and rows.device.type == "cpu":
            # The same in fewer passes over the logits, which no CPU's cache holds; torch's CPU kernel may write in
            # place.
            peak = logits[0].amax(-1)
            likeliest = torch.softmax(logits[0], -1, out=logits[0]).amax(-1)
            return peak - likeliest.log() - wanted[0], logits
        peak = parts.maximum(logits)
        exponentials = [part.sub_(peak[:, None]).exp_() for part in logits]
        pairs = [torch.stack((part.sum(-1), pick)) for part, pick in zip(exponentials, wanted, strict=True)]
        total, picked = parts.sum(pairs)
        return total.log() + peak - picked, [part.div_(total[:, None]) for part in exponentials]

    def slopes(self, made: Sequence[torch.Tensor], parts: HeadParts, chunk: slice) -> Sequence[torch.Tensor]:
        """In place of the probabilities: less 1 at the label."""
        return less_at_label(made, parts, self.classes[chunk])


def less_at_label(
    probabilities: Sequence[torch.Tensor], parts: HeadParts, classes: torch.Tensor
) -> Sequence[torch.Tensor]:
    """The cross entropy by the logits, in place of the probabilities."""
    for part, start in zip(probabilities, parts.starts, strict=True):
        local, is_here = _local(classes, start, part.shape[1])
        part.scatter_add_(1, local[:, None], -is_here.to(part.dtype)[:, None])
    return probabilities


def _pick(logits: torch.Tensor, classes: torch.Tensor, start: int) -> torch.Tensor:
    """The logit of each row's class where this part holds it, else 0."""
    local, is_here = _local(classes, start, logits.shape[1])
    return logits.gather(1, local[:, None])[:, 0] * is_here


def _local(classes: torch.Tensor, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    is_here = (classes >= start) & (classes < start + size)
    return torch.where(is_here, classes - start, 0), is_here


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, comparison, shares, factors, with_gradient, *tables):
        needs = ctx.needs_input_grad
        wants_rows, wants_tables = with_gradient and needs[0], [with_gradient and need for need in needs[5:]]
        parts = HeadParts(list(zip(tables, factors, strict=True)), matmul_dtype(rows))
        rows_gradient = torch.zeros_like(rows, dtype=shares.dtype) if wants_rows else None
        table_gradients: list[torch.Tensor | None] = [None] * len(tables)
        loss = shares.new_zeros(())
        for chunk in _chunks(rows):
            losses, made = comparison.losses(rows[chunk], parts, chunk)
            loss += (losses * shares[chunk]).sum()
            if wants_rows or any(wants_tables):
                slopes, share = comparison.slopes(made, parts, chunk), shares[chunk, None]
                if rows_gradient is not None:
                    rows_gradient[chunk] = _rows_gradient(slopes, parts, rows_gradient.dtype) * share
                weighed = rows[chunk] * share.to(rows.dtype)
                for number, (slope, factor) in enumerate(zip(slopes, factors, strict=True)):
                    if wants_tables[number]:
                        before = table_gradients[number]
                        table_gradients[number] = _table_gradient(before, slope, weighed, factor, shares.dtype)
        ctx.dtypes = [tensor.dtype for tensor in (rows, *tables)]
        ctx.gradients = [rows_gradient, *table_gradients]
        return loss

    @staticmethod
    def backward(ctx, upstream):
        assert ctx.gradients is not None, "the gradients of this loss were taken already"
        gradients = [
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return gradients[0], None, None, None, None, *gradients[1:]


def _rows_gradient(slopes: Sequence[torch.Tensor], parts: HeadParts, dtype: torch.dtype) -> torch.Tensor:
    return parts.sum(
        [
            (slope.to(table.dtype) @ table).to(dtype) * factor
            for slope, table, factor in zip(slopes, parts.tables, parts.factors, strict=True)
        ]
    )


def _table_gradient(
    before: torch.Tensor | None, slope: torch.Tensor, rows: torch.Tensor, factor: float, dtype: torch.dtype
) -> torch.Tensor:
    """With that of a chunk added; before: of the chunks before it, None for the first, so that nothing as large as a
    table is filled with zeros.
    """
    arithmetic = matmul_dtype(rows)
    # fp32 products cost a CPU no more than others, and an accelerator many times as much.
    if dtype != rows.dtype or (arithmetic != dtype and rows.device.type != "cpu"):
        slope, rows = slope.to(arithmetic), rows.to(arithmetic)
    if before is None:
        # Written in place, which autocast leaves alone.
        made = torch.empty(slope.shape[1], rows.shape[1], dtype=rows.dtype, device=rows.device)
        return torch.mm(slope.t(), rows if factor == 1 else rows * factor, out=made).to(dtype)
    if dtype == rows.dtype:
        return before.addmm_(slope.t(), rows, alpha=factor)
    return before.add_((slope.t() @ rows).to(dtype), alpha=factor)
