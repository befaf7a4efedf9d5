"""Where the labels stand that are in the loss: known on the host, so that no device has to be asked."""

from __future__ import annotations

from typing import Any

import torch

from hanlin.core.batch import IGNORED

__all__ = ["at_places", "labelled_places", "note_labelled"]


def note_labelled(labels: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
    """Let labels bear the places of those that are in the loss, as their attribute `labelled`; None: look for them."""
    if places is None:
        places = (labels.flatten() != IGNORED).nonzero()[:, 0]
    bearer: Any = labels
    bearer.labelled = places
    return places


def labelled_places(labels: torch.Tensor) -> torch.Tensor:
    """The places of the labels that are in the loss, in the flattened `[batch * length]`."""
    places: torch.Tensor | None = getattr(labels, "labelled", None)
    return (labels.flatten() != IGNORED).nonzero()[:, 0] if places is None else places


def at_places(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The values `[batch, length, ...]` at places of the flattened rows."""
    return values.flatten(0, 1).index_select(0, places)
