"""The output head and its cross entropy in one, without ever holding the logits of more than a few rows.

Only labelled positions are projected. Their gradients are computed in the forward pass, chunk by chunk while the
logits are there, so the backward pass only multiplies by a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from hanlin.core.batch import IGNORED
from hanlin.layers.precision import at_least_fp32, matmul_dtype

CHUNK_ROWS = 256
"""Rows whose logits are held at once; speed is flat from 128 to 512 (2 GEMM-bound cores and large GPUs alike)."""

Piece = tuple[torch.Tensor, float]
"""A part of the head: (weight `[vocab part, hidden_size]`, factor of its logits); parts follow each other."""


def head_loss(
    hidden: torch.Tensor,
    pieces: Sequence[Piece],
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """The weighted cross entropy of the labelled positions: their sum (a scalar, at least fp32) or `[batch, length]`.

    hidden: `[batch, length, hidden_size]`; labels: `[batch, length]`, -100 = not in the loss; weights: the same, or
    None = 1 each. "none" has no gradient.
    """
    labelled = labels != IGNORED
    rows, classes = hidden[labelled], labels[labelled].long()
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    shares = torch.ones_like(classes, dtype=dtype) if weights is None else weights[labelled].to(dtype)
    factors = tuple(factor for _, factor in pieces)
    tables = [table for table, _ in pieces]
    if reduction == "sum":
        return _SummedLoss.apply(rows, classes, shares, factors, torch.is_grad_enabled(), *tables)
    losses = torch.zeros_like(labels, dtype=shares.dtype)
    losses[labelled] = _losses(rows.detach(), tables, factors, classes) * shares
    return losses


def _losses(
    rows: torch.Tensor, tables: Sequence[torch.Tensor], factors: Sequence[float], classes: torch.Tensor
) -> torch.Tensor:
    casted = [table.detach().to(matmul_dtype(rows)) for table in tables]
    losses = [
        _chunk(part, casted, factors, part_classes)[0]
        for part, part_classes in zip(rows.split(CHUNK_ROWS), classes.split(CHUNK_ROWS), strict=True)
    ]
    return torch.cat(losses)


def _chunk(
    rows: torch.Tensor, tables: Sequence[torch.Tensor], factors: Sequence[float], classes: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Losses of some rows; what is left of the logits is exp(logit - peak) per part, and its sum over all parts."""
    # The factor goes to the hidden state, which is small, and not to the logits (kept: the original does so in fp16).
    logits = [
        at_least_fp32((rows * factor).to(table.dtype) @ table.t())
        for table, factor in zip(tables, factors, strict=True)
    ]
    peak = torch.stack([part.amax(-1) for part in logits]).amax(0)
    wanted = _pick(logits, classes)
    exponentials = [part.sub_(peak[:, None]).exp_() for part in logits]
    total = sum(part.sum(-1) for part in exponentials)
    assert isinstance(total, torch.Tensor)
    return total.log() + peak - wanted, exponentials, total


def _pick(logits: Sequence[torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
    """The logit of each row's class."""
    picked = torch.zeros_like(logits[0][:, 0])
    start = 0
    for part in logits:
        local, is_here = _local(classes, start, part.shape[1])
        picked = torch.where(is_here, part.gather(1, local[:, None])[:, 0], picked)
        start += part.shape[1]
    return picked


def _local(classes: torch.Tensor, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    is_here = (classes >= start) & (classes < start + size)
    return torch.where(is_here, classes - start, 0), is_here


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, classes, shares, factors, with_gradient, *tables):
        needs = ctx.needs_input_grad
        wants_rows, wants_tables = with_gradient and needs[0], [with_gradient and need for need in needs[5:]]
        rows_gradient = torch.zeros_like(rows, dtype=shares.dtype) if wants_rows else None
        table_gradients = [
            torch.zeros_like(table, dtype=shares.dtype) if wanted else None
            for table, wanted in zip(tables, wants_tables, strict=True)
        ]
        casted = [table.to(matmul_dtype(rows)) for table in tables]
        loss = shares.new_zeros(())
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            losses, exponentials, total = _chunk(rows[chunk], casted, factors, classes[chunk])
            loss += (losses * shares[chunk]).sum()
            if wants_rows or any(wants_tables):
                slopes = _slopes(exponentials, total, classes[chunk], shares[chunk])
                _add_rows_gradient(rows_gradient, chunk, slopes, casted, factors)
                _add_table_gradients(table_gradients, rows[chunk], slopes, factors)
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


def _slopes(
    exponentials: Sequence[torch.Tensor], total: torch.Tensor, classes: torch.Tensor, shares: torch.Tensor
) -> list[torch.Tensor]:
    """The loss by the logits: share * (probability - 1 at the label), in place of the exponentials."""
    start = 0
    for part in exponentials:
        part.mul_((shares / total)[:, None])
        local, is_here = _local(classes, start, part.shape[1])
        part.scatter_add_(1, local[:, None], -(shares * is_here)[:, None])
        start += part.shape[1]
    return list(exponentials)


def _add_rows_gradient(gradient, chunk, slopes, tables, factors) -> None:
    if gradient is None:
        return
    for slope, table, factor in zip(slopes, tables, factors, strict=True):
        gradient[chunk] += (slope.to(table.dtype) @ table).to(gradient.dtype) * factor


def _add_table_gradients(gradients, rows, slopes, factors) -> None:
    for gradient, slope, factor in zip(gradients, slopes, factors, strict=True):
        if gradient is not None and gradient.dtype == rows.dtype:
            gradient.addmm_(slope.t(), rows, alpha=factor)
        elif gradient is not None:
            gradient.add_(
                (slope.to(matmul_dtype(rows)).t() @ rows.to(matmul_dtype(rows))).to(gradient.dtype), alpha=factor
            )
