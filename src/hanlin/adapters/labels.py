"""A head for labels in an adapter: it is trained beside a frozen base, and has a place only where its labels are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

LABEL_VALUES = ("labels", "label_kind", "label_dropout")
"""The values of a configuration that say what a head for labels is."""


def is_label_parameter(name: str) -> bool:
    """Whether this is our name of a parameter of a head for labels."""
    return name.rpartition(".")[2].startswith("label_")


def stated_labels(model: Any) -> dict[str, Any]:
    """What the model's head for labels, which is in the adapter, comes from; {} for a language model."""
    from hanlin.layers.label_head import label_parameters

    return {name: getattr(model.config, name) for name in LABEL_VALUES} if label_parameters(model) else {}


def refuse_labels(model: nn.Module) -> None:
    """Raises: CheckpointError for a model with a head for labels."""
    if stated_labels(model):
        raise CheckpointError(
            "this adapter holds a head for labels, for which the foreign layouts of a LoRA have no place; work both "
            "into the base: `hanlin convert BASE NEW_FOLDER --merge ADAPTER`"
        )
