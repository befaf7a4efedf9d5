"""The loss of two positions that compete for one label: the first one's logit must be larger (pairwise ranking)."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from hanlin.core.batch import IGNORED
from hanlin.layers.precision import at_least_fp32


def contest_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    rivals: torch.Tensor,
    weights: torch.Tensor | None = None,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """The weighted losses -log sigmoid(own - rival) of the labelled positions: their sum, or `[batch, length]`.

    hidden: `[batch, length, hidden_size]`; head: `[vocab, hidden_size]`; labels, rivals, weights: `[batch, length]`;
    a rival is a position of the same row. The logits are the label's, at both positions.
    """
    labelled = labels != IGNORED
    rows = labelled.nonzero()[:, 0]
    vectors = head[labels[labelled]].to(hidden.dtype)
    own, other = hidden[labelled], hidden[rows, rivals[labelled]]
    # As a cross entropy between the two: softmax of (own, other) with own as the right class.
    margins = at_least_fp32(((own - other) * vectors).sum(-1))
    values = functional.softplus(-margins)
    if weights is not None:
        values = values * weights[labelled].to(values.dtype)
    if reduction == "sum":
        return values.sum()
    losses = torch.zeros_like(labels, dtype=values.dtype)
    losses[labelled] = values.detach()
    return losses
