"""Experts: everyone gets its share, nothing is lost, and a token gets what its expert would give it alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hanlin.layers.experts import Experts, assign_balanced, deal
from hanlin.layers.norm import RmsNorm


class Expert(nn.Module):
    """Adds its number to what it gets, without changing the norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = RmsNorm(size, 1e-6)
        self.inner = nn.Linear(size, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.inner(self.norm(hidden))


def make_experts(count: int = 3, size: int = 5) -> Experts:
    torch.manual_seed(0)
    experts = Experts(lambda: Expert(size), count, size)
    experts.init_weights(torch.Generator().manual_seed(0))
    return experts


@pytest.mark.parametrize(("tokens", "experts"), [(12, 4), (40, 2), (8, 8), (6, 1)])
def test_every_expert_gets_its_share_of_the_tokens(tokens: int, experts: int) -> None:
    scores = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(1))
    assigned = assign_balanced(scores)
    assert sorted(assigned.tolist()) == list(range(tokens))
    by_chance = scores.view(experts, -1, experts).diagonal(dim1=0, dim2=2).sum()
    found = sum(float(scores[own, number].sum()) for number, own in enumerate(assigned.view(experts, -1)))
    assert found >= float(by_chance) - 1e-6


def test_equal_scores_are_assigned_all_the_same() -> None:
    assert sorted(assign_balanced(torch.zeros(12, 3)).tolist()) == list(range(12))


def test_the_last_digit_of_a_score_decides_nothing() -> None:
    draw = torch.Generator().manual_seed(3)
    for _ in range(20):
        scores = torch.randn(64, 4, generator=draw, dtype=torch.float64)
        scores[40:] = scores[40]  # as padding, which is all alike
        noise = 1e-15 * torch.randn(scores.shape, generator=draw, dtype=torch.float64)
        assert assign_balanced(scores + noise).equal(assign_balanced(scores))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_few_digits_are_assigned_as_their_values_in_fp32(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        scores = (40 * torch.randn(64, 4, generator=draw)).to(dtype)
        assert assign_balanced(scores).equal(assign_balanced(scores.float()))


def test_dealing_loses_no_token_and_parts_neighbours() -> None:
    groups = deal(18, 3)
    assert sorted(groups.flatten().tolist()) == list(range(18))
    assert groups[0].tolist() == [0, 1, 8, 9, 16, 17]


@pytest.mark.parametrize("tokens", [9, 18, 20, 1])
@pytest.mark.parametrize("is_training", [True, False])
def test_a_token_gets_what_its_expert_would_give_it_alone(tokens: int, is_training: bool) -> None:
    layer = make_experts().train(is_training)
    hidden = torch.randn(1, tokens, 5, generator=torch.Generator().manual_seed(2))
    out = layer(hidden)[0]
    chosen = (layer._balanced if is_training else layer._best)(hidden[0])
    for number, expert in enumerate(layer.experts.values()):
        torch.testing.assert_close(out[chosen == number], expert(hidden[0, chosen == number]))
    if is_training and tokens % 9 == 0:
        assert chosen.bincount().tolist() == [tokens // 3] * 3
