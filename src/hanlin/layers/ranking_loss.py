"""The loss of two positions that compete for one label: the first one's logit must be larger (pairwise ranking)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional

from hanlin.core.labels import at_places, labelled_places
from hanlin.layers.loss import HeadPart, head_logits, weighted
from hanlin.layers.precision import at_least_fp32


def pairwise_ranking_loss(
    hidden: torch.Tensor,
    pieces: Sequence[HeadPart],
    labels: torch.Tensor,
    negatives: torch.Tensor,
    weights: torch.Tensor | None = None,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """The weighted losses -log sigmoid(own - negative) of the labelled positions: their sum, or `[batch, length]`.

    hidden: `[batch, length, hidden_size]`; pieces: of the head, as in `head_loss`; labels, negatives, weights:
    `[batch, length]`; a negative is a position of the same row. The logits are the label's, at both positions.
    """
    places, length = labelled_places(labels), labels.shape[1]
    others = places - places % length + at_places(negatives, places)
    pairs = torch.stack((at_places(hidden, places), at_places(hidden, others)), dim=1)
    classes = at_places(labels, places)[:, None, None].expand(-1, 2, 1)
    own, other = at_least_fp32(head_logits(pairs, pieces).gather(-1, classes)).squeeze(-1).unbind(1)
    # A cross entropy between the two positions, of which the own one is right.
    values = functional.softplus(other - own)
    return weighted(values, labels, weights, reduction)
