"""The head for labels against the product and the losses written out, position by position."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hanlin.core.batch import IGNORED
from hanlin.layers.label_head import LabelHead

HIDDEN = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PLACES = [(0, 1), (0, 4), (2, 2)]  # of the samples' last tokens: two in a row, none, one before padding
LABELS = torch.full((3, 5), IGNORED)
TARGETS = torch.zeros(3, 5, 4)
for number, place in enumerate(PLACES):
    LABELS[place] = number
    TARGETS[place] = torch.tensor([1.0, 0, number, 0.5])


def make_head(kind, dropout: float = 0.0) -> LabelHead:
    head = LabelHead(4, 8, kind, dropout).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    return head


def written_out(head: LabelHead, place: tuple[int, int]) -> torch.Tensor:
    scores = HIDDEN[place] @ head.label_weight.T + head.label_bias
    wanted = TARGETS[place].double()
    if head.kind == "one":
        return -(scores - scores.exp().sum().log())[LABELS[place]]
    if head.kind == "number":
        return ((scores - wanted) ** 2).mean()
    right = torch.sigmoid(scores)
    return -(wanted * right.log() + (1 - wanted) * (1 - right).log()).mean()


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_losses_stand_at_the_last_tokens_and_are_added_by_weight(kind) -> None:
    head, weights = make_head(kind), torch.rand(3, 5, generator=torch.Generator().manual_seed(3)) + 0.5
    losses = head.loss(HIDDEN, LABELS, weights=weights, reduction="none", targets=TARGETS)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for place in PLACES:
        expected[place] = (written_out(head, place) * weights[place]).detach()
    torch.testing.assert_close(losses, expected)
    total = head.loss(HIDDEN, LABELS, weights=weights, targets=TARGETS)
    torch.testing.assert_close(total, expected.sum())
    total.backward()
    gradient = head.label_weight.grad
    [slope] = torch.autograd.grad(sum(written_out(head, at) * weights[at] for at in PLACES), head.label_weight)
    torch.testing.assert_close(gradient, slope)


def test_rows_without_a_sample_add_nothing_but_a_gradient_of_zero() -> None:
    head = make_head("one")
    loss = head.loss(HIDDEN, torch.full_like(LABELS, IGNORED))
    loss.backward()
    assert (loss.item(), head.label_weight.grad.abs().max().item()) == (0, 0)


def test_numbers_stay_fp32_under_autocast_and_dropout_is_for_training() -> None:
    head = make_head("number", dropout=0.5).float()
    hidden = HIDDEN.float()
    expected = functional.linear(hidden, head.label_weight, head.label_bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert head.eval()(hidden).equal(expected)
        assert not head.train()(hidden).equal(expected)
