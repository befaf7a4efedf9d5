"""The loss of two positions that compete for a label."""

import torch

from hanlin.layers.ranking_loss import pairwise_ranking_loss


def test_the_own_logit_must_beat_the_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 5, 3, generator=generator), torch.randn(7, 3, generator=generator)
    labels, negatives = torch.full((2, 5), -100), torch.full((2, 5), -1)
    labels[0, 1], negatives[0, 1] = 4, 3
    labels[1, 0], negatives[1, 0] = 2, 4
    weights = torch.ones(2, 5)
    weights[1, 0] = 0.5
    logits = hidden @ head.t()
    wanted = torch.stack([logits[0, [1, 3], 4], logits[1, [0, 4], 2]])
    expected = torch.nn.functional.cross_entropy(wanted, torch.zeros(2, dtype=torch.int64), reduction="none")
    each = pairwise_ranking_loss(hidden, [(head, 1.0)], labels, negatives, weights, "none")
    torch.testing.assert_close(each[labels >= 0], expected * torch.tensor([1, 0.5]))
    assert each[labels < 0].eq(0).all()
    torch.testing.assert_close(pairwise_ranking_loss(hidden, [(head, 1.0)], labels, negatives, weights), each.sum())


def test_nothing_labelled_costs_nothing() -> None:
    hidden = torch.ones(1, 2, 3, requires_grad=True)
    loss = pairwise_ranking_loss(hidden, [(torch.ones(4, 3), 1.0)], torch.full((1, 2), -100), torch.full((1, 2), -1))
    loss.backward()
    assert loss == 0
