"""Attention inside windows, and of queries that see nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from hanlin.layers.attention import (
    AttentionMask,
    AttentionWindows,
    additive_mask,
    attention,
    causal_mask,
    packed_causal_mask,
)


def test_grouping_and_ungrouping_undo_each_other_with_gradients() -> None:
    windows = AttentionWindows.of(torch.tensor([[[0, 1, 2], [4, -1, -1]], [[3, 1, -1], [-1, -1, -1]]]), length=5)
    vectors = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    ungrouped = windows.ungroup(windows.group(vectors), 5)
    inside = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)
    assert ungrouped.equal(vectors * inside[..., None])
    assert torch.autograd.gradcheck(lambda x: windows.ungroup(windows.group(x).square(), 5), vectors)


def test_a_query_that_sees_nothing_gets_zero_and_harms_no_gradient() -> None:
    query, key, value = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 3, 3, requires_grad=True)
    visible = torch.tensor([[[True, True, False], [False, False, False], [True, True, True]]])
    mixed = attention(query, key, value, additive_mask(bias, visible))
    assert (mixed[:, 1] == 0).all()
    mixed.sum().backward()
    for leaf in (query, key, value, bias):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert (bias.grad[:, :, 1] == 0).all()


def test_no_row_of_a_bias_is_closed_from_end_to_end() -> None:
    """It would be NaN in kernels that do not look out for it."""
    visible = torch.tensor([[[True, False], [False, False]]])
    mask = additive_mask(torch.zeros(1, 1, 2, 2), visible)
    assert mask.mask is not None
    assert mask.mask[0, 0].tolist() == [[0, -torch.inf], [0, 0]]
    assert mask.empty_queries is not None
    assert mask.empty_queries.tolist() == [[False, True]]


def test_a_mask_is_made_additive_and_aligned_once_with_the_gradient_of_its_bias() -> None:
    bias = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    visible = torch.rand(2, 3, 5) > 0.3
    hidden = ~visible & visible.any(-1, keepdim=True)

    def shares(bias: torch.Tensor) -> torch.Tensor:
        mask = additive_mask(bias, visible).mask
        assert mask is not None
        assert mask.stride() == (2 * 3 * 16, 3 * 16, 16, 1)
        return mask.softmax(-1)

    torch.testing.assert_close(shares(bias), bias.masked_fill(hidden[:, None], -torch.inf).softmax(-1))
    assert torch.autograd.gradcheck(shares, bias)
    for mask in (AttentionMask(visible[:, None]), AttentionMask(visible[:, None]).with_prefix(2, visible[..., 0])):
        assert mask.mask is not None
        additive = mask.additive(torch.bfloat16).mask
        assert additive is not None
        assert additive.dtype == torch.bfloat16
        assert additive.equal(torch.where(mask.mask, 0, -torch.inf).bfloat16())


def test_keys_of_a_prefix_stand_first_and_are_seen_by_all() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    causal = causal_mask(2, 2)[None, None]
    seen = [[True, True, True, False], [True, True, True, True]]
    for mask in (AttentionMask(causal), AttentionMask()):
        longer = mask.with_prefix(2, tokens).mask
        assert longer is not None
        assert longer[0, 0].tolist() == seen
    biased = AttentionMask(torch.full((1, 1, 2, 2), 3.0)).with_prefix(1, tokens).mask
    assert biased is not None
    assert biased[0, 0].tolist() == [[0, 3, 3], [0, 3, 3]]


def test_shared_heads_and_the_lone_query_equal_the_written_out_softmax() -> None:
    torch.manual_seed(0)
    key, value = (torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(2))
    for queries in (1, 5):
        query = torch.randn(2, 6, queries, 4, dtype=torch.float64)
        visible = causal_mask(queries, 5).expand(2, 1, -1, -1)
        scores = query @ key.repeat_interleave(3, 1).transpose(-1, -2) / 2
        shares = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        expected = (shares @ value.repeat_interleave(3, 1)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention(query, key, value, AttentionMask()), expected)
        torch.testing.assert_close(attention(query, key, value, AttentionMask(visible)), expected)


@pytest.mark.parametrize(
    ("capability", "dtype", "is_grouped"),
    [
        ((9, 0), torch.bfloat16, True),
        ((9, 0), torch.float32, False),  # only flash takes shared keys, and it takes no fp32
        ((7, 0), torch.float16, False),  # V100 and T4 have no flash
    ],
)
def test_shared_keys_are_copied_where_no_fused_kernel_of_cuda_takes_them(
    capability: tuple[int, int], dtype: torch.dtype, is_grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append((key.shape[1], value.shape[1], options.get("enable_gqa", False)))
        return torch.empty_like(query)

    def copies(part: torch.Tensor, repeats: int) -> torch.Tensor:  # torch without CUDA cannot even index its tensors
        return part.new_empty(len(part), part.shape[1] * repeats, *part.shape[2:])

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("hanlin.layers.attention.for_each_query_head", copies)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    with FakeTensorMode():
        query, key, value = (torch.empty(2, heads, 5, 64, device="cuda", dtype=dtype) for heads in (8, 2, 2))
        assert attention(query, key, value, AttentionMask()).shape == (2, 5, 8 * 64)
    assert asked == ([(2, 2, True)] if is_grouped else [(8, 8, False)])


def test_neighbours_share_windows_as_wide_as_the_longest_span() -> None:
    spans = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2, 3, -1, -1, -1], [0, 0, 0, 1, 2, 2, -1, -1, -1, -1, -1, -1]])
    mask = packed_causal_mask(spans)
    assert mask.windows is not None
    assert mask.windows.positions.tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, -1, -1, -1],
        [12, 13, 14, 15],
        [16, 17, -1, -1],
        [-1, -1, -1, -1],
    ]
    assert mask.mask is not None
    assert mask.mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("bias", [(2, 3, 4, 5), (1, 3, 4, 5), (3, 1, 5), ()])
def test_the_shape_of_a_mask_is_worked_out_without_sympy(
    bias: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which torch.broadcast_shapes imports, for a second."""
    expected = (2, *torch.broadcast_shapes(bias, (1, 1, 4, 5))[1:])
    monkeypatch.setattr(torch, "broadcast_shapes", None)
    assert additive_mask(torch.zeros(bias), torch.ones(2, 4, 5, dtype=torch.bool)).mask.shape == expected


def test_a_mask_costs_nothing_where_nothing_is_packed() -> None:
    assert packed_causal_mask(torch.tensor([[0, 0, 0], [0, 0, -1]])) == AttentionMask()
    alone = packed_causal_mask(torch.tensor([[-1, -1, 0, 0, 0], [0, 0, 0, -1, -1]]))
    assert alone.windows is not None
    assert alone.mask is None
    square = packed_causal_mask(torch.tensor([[-1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 1]]))
    assert square.windows is None  # two windows of four positions would be more work than one of five
    assert square.mask is not None
