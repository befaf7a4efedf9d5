"""The chunked head against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hanlin.layers import loss as loss_module
from hanlin.layers.loss import HeadPart, head_loss


def plain_loss(
    hidden: torch.Tensor, pieces: list[HeadPart], labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    logits = torch.cat([hidden @ table.t() * factor for table, factor in pieces], -1)
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses.view_as(labels) * weights).sum()


def make_problem() -> tuple[torch.Tensor, list[HeadPart], torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tables = [torch.randn(size, 8, generator=draw, dtype=torch.float64, requires_grad=True) for size in (13, 4)]
    hidden = torch.randn(2, 9, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 17, (2, 9), generator=draw)
    labels[0, ::2] = -100
    weights = torch.rand(2, 9, generator=draw, dtype=torch.float64)
    return hidden, [(tables[0], 0.3), (tables[1], 1.0)], labels, weights


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_chunks_equal_full_logits_with_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", rows)
    hidden, pieces, labels, weights = make_problem()
    leaves = [hidden, *(table for table, _ in pieces)]
    ours, theirs = head_loss(hidden, pieces, labels, weights), plain_loss(hidden, pieces, labels, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    # A factor upstream, as gradient scaling puts it there.
    found, expected = torch.autograd.grad(ours * 7, leaves), torch.autograd.grad(theirs * 7, leaves)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_lone_table_has_the_same_loss_and_gradients() -> None:
    hidden, pieces, labels, weights = make_problem()
    lone, labels = pieces[:1], labels.where(labels < 13, -100)
    leaves = [hidden, lone[0][0]]
    ours, theirs = head_loss(hidden, lone, labels, weights), plain_loss(hidden, lone, labels, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    found, expected = torch.autograd.grad(ours * 7, leaves), torch.autograd.grad(theirs * 7, leaves)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_frozen_tables_get_no_gradient() -> None:
    hidden, pieces, labels, weights = make_problem()
    frozen: list[HeadPart] = [(table.detach(), factor) for table, factor in pieces]
    (expected,) = torch.autograd.grad(plain_loss(hidden, pieces, labels, weights), hidden)
    (found,) = torch.autograd.grad(head_loss(hidden, frozen, labels, weights), hidden)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_each_positions_loss_sums_to_the_whole() -> None:
    hidden, pieces, labels, weights = make_problem()
    each = head_loss(hidden, pieces, labels, weights, "none")
    assert each.shape == labels.shape
    assert (each[labels == -100] == 0).all()
    torch.testing.assert_close(each.sum(), head_loss(hidden, pieces, labels, weights).detach(), atol=1e-12, rtol=1e-12)


def test_no_label_means_no_loss_and_zero_gradients() -> None:
    hidden, pieces, labels, _ = make_problem()
    ours = head_loss(hidden, pieces, torch.full_like(labels, -100))
    ours.backward()
    assert ours == 0
    assert hidden.grad is not None
    assert (hidden.grad == 0).all()
    assert head_loss(hidden, pieces, torch.full_like(labels, -100), reduction="none").sum() == 0


def test_half_precision_gives_a_fp32_loss() -> None:
    hidden, pieces, labels, weights = make_problem()
    half = [(table.detach().bfloat16().requires_grad_(), factor) for table, factor in pieces]
    ours = head_loss(hidden.bfloat16(), half, labels, weights.float())
    ours.backward()
    assert ours.dtype == torch.float32
    assert half[0][0].grad is not None
    assert half[0][0].grad.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), plain_loss(hidden, pieces, labels, weights), rtol=0.02, atol=0.0)
