"""Parameters of a model by their dotted names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def set_parameter(model: nn.Module, name: str, values: torch.Tensor, *, requires_grad: bool = True) -> None:
    """Put a new parameter with these values in the place of the one of this name ("blocks.0.ffn.up.weight")."""
    from torch import nn

    owner, _, last = name.rpartition(".")
    model.get_submodule(owner).register_parameter(last, nn.Parameter(values, requires_grad=requires_grad))
