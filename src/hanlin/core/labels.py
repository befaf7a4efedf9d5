"""Where the labels stand that are in the loss: known on the host, so that no device has to be asked."""

from __future__ import annotations

from typing import Any

import torch

from hanlin.core.batch import IGNORED

__all__ = ["at_places", "find_places", "labelled_places", "with_places"]


def find_places(labels: torch.Tensor) -> torch.Tensor:
    """The places of the labels that are in the loss, in the flattened `[batch * length]`."""
    return (labels.flatten() != IGNORED).nonzero()[:, 0]


def with_places(labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Labels that were brought to a device, which nobody changes there, bearing their places."""
    bearer: Any = labels
    bearer.labelled = places
    return labels


def labelled_places(labels: torch.Tensor) -> torch.Tensor:
    """`find_places`, where they are not known yet."""
    places: torch.Tensor | None = getattr(labels, "labelled", None)
    return find_places(labels) if places is None else places


def at_places(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The values `[batch, length, ...]` at places of the flattened rows."""
    return values.flatten(0, 1).index_select(0, places)
