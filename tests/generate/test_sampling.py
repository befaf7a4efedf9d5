from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hanlin.generate.sampling import (
    BANNED,
    _next_below,
    ban_ids,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_used,
    running_sums,
    warp,
)

INF = torch.inf


def test_only_the_banned_columns_of_a_row_are_ruled_out():
    logits = torch.zeros(2, 3)
    assert ban_ids(logits, [[], [0, 2]]).tolist() == [[0, 0, 0], [BANNED, 0, BANNED]]
    assert logits.abs().sum() == 0


def test_used_columns_are_penalised_once_and_towards_less():
    logits = torch.tensor([[2.0, -2.0, 3.0], [1.0, 1.0, 1.0]])
    assert penalise_used(logits, [[0, 0, 1], []], 2.0).tolist() == [[1, -4, 3], [1, 1, 1]]


def test_top_k_keeps_ties_with_the_kth():
    assert keep_top_k(torch.tensor([[1.0, 3, 2, 2]]), 2).tolist() == [[-INF, 3, 2, 2]]
    assert keep_top_k(torch.tensor([[1.0, 3]]), 0).tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, [1]), (0.5, [1]), (0.6, [1, 3]), (0.85, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_columns_that_reach_p(p: float, kept: list[int]):
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    assert keep_top_p(logits, p)[0].isfinite().nonzero().flatten().tolist() == kept


def test_temperature_comes_before_the_cut():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert warp(logits, 1.0, 0, 0.6)[0].isfinite().tolist() == [True, True, False]
    assert warp(logits, 0.2, 0, 0.6)[0].isfinite().tolist() == [True, False, False]


def test_draws_follow_the_probabilities_and_never_leave_them():
    logits = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0]).log().expand(4000, -1)
    chosen = draw(logits, np.random.default_rng(0).random(4000).tolist())
    shares = torch.bincount(chosen, minlength=6) / 4000
    assert shares[[0, 2, 5]].tolist() == [0, 0, 0]
    torch.testing.assert_close(shares[[1, 3, 4]], torch.tensor([0.1, 0.6, 0.3]), atol=0.03, rtol=0)
    assert draw(logits[:2], [0.0, 1 - 1e-12]).tolist() == [1, 4]


def test_a_lone_row_on_a_device_is_added_up_as_one_of_two() -> None:
    """CUDA adds up a lone row in an order of chance."""
    seen: list[torch.Size] = []

    class Sums(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.cumsum.default:
                seen.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with Sums():
        assert running_sums(torch.zeros(1, 5, device="meta")).shape == (1, 5)
        running_sums(torch.zeros(1, 5))
    assert seen == [(2, 5), (1, 5)]


def test_ids_far_below_the_likeliest_one_are_ruled_out() -> None:
    logits = torch.tensor([[0.0, -1.0, -3.0, 0.5]])
    shares = logits.softmax(-1) / logits.softmax(-1).max()
    for share in (0.0, 0.2, 0.5, 1.0):
        kept = keep_min_p(logits, share).isfinite()
        assert torch.equal(kept, shares >= share - 1e-6)


def test_what_an_answer_has_already_is_less_likely_once_or_each_time() -> None:
    logits = torch.zeros(2, 4)
    found = penalise_counts(logits, [[1, 1, 3], []], presence=0.5, frequency=0.25)
    torch.testing.assert_close(found, torch.tensor([[0.0, -1.0, 0.0, -0.75], [0.0, 0.0, 0.0, 0.0]]))
    assert penalise_counts(logits, [[1], [2]], presence=0, frequency=0) is logits


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 5e-324])
def test_no_temperature_is_too_low(temperature: float) -> None:
    logits = torch.tensor([[2.0, -INF, 3.0, -1e4], [-5.0, -4.0, -6.0, -4.5]])
    for last in (False, True):
        warped = warp(logits, temperature, 0, 0.9, temperature_last=last)
        assert draw(warped, [0.3, 0.999]).tolist() == [2, 1]


def test_a_temperature_divides_to_the_bit() -> None:
    """As the originals do it; only where that would be infinite the likeliest id has 0."""
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    for temperature in (0.3, 0.5, 1.0, 1.7):
        assert warp(logits, temperature, 0, 1.0).equal(logits / temperature)
    assert warp(logits, 1e-38, 0, 1.0).argmax(-1).equal(logits.argmax(-1))
    assert not warp(logits, 1e-38, 0, 1.0).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_next_number_below_is_what_nextafter_says(dtype: torch.dtype) -> None:
    sums = torch.tensor([1.0, 1.0000001, 0.9999999, 2.0, 1e-30], dtype=dtype)[:, None]
    assert _next_below(sums).equal(sums.nextafter(torch.zeros_like(sums)))
