"""Attention inside windows, and of columns that see nothing."""

from __future__ import annotations

import torch

from hanlin.layers.attention import Sight, Windows, attend


def test_grouping_and_spreading_undo_each_other_with_gradients() -> None:
    windows = Windows.of(torch.tensor([[[0, 1, 2], [4, -1, -1]], [[3, 1, -1], [-1, -1, -1]]]), length=5)
    vectors = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    spread = windows.spread(windows.group(vectors), 5)
    inside = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)
    assert spread.equal(vectors * inside[..., None])
    assert torch.autograd.gradcheck(lambda x: windows.spread(windows.group(x).square(), 5), vectors)


def test_a_query_that_sees_nothing_gets_zero_and_harms_no_gradient() -> None:
    query, key, value = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 3, 3, requires_grad=True)
    visible = torch.tensor([[[True, True, False], [False, False, False], [True, True, True]]])
    mixed = attend(query, key, value, Sight.of(bias, visible))
    assert (mixed[:, 1] == 0).all()
    mixed.sum().backward()
    for leaf in (query, key, value, bias):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert (bias.grad[:, :, 1] == 0).all()
