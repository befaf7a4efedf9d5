"""A method applied to a model in place: what is added, what is frozen, what is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from hanlin.core.errors import ConfigError, shorten
from hanlin.core.parameters import set_parameter
from hanlin.formats.load import added_parameters
from hanlin.layers.label_head import train_label_head

if TYPE_CHECKING:
    from hanlin.recipe.tuning import TuningMethod


class HasTargets(Protocol):
    """What tuning uses of a `models.family.Family`."""

    @property
    def name(self) -> str: ...
    @property
    def lora_targets(self) -> tuple[str, ...]: ...


def apply_tuning(
    model: Any,
    method: TuningMethod,
    family: HasTargets,
    generator: torch.Generator | None = None,
    *,
    is_loaded: bool = False,
) -> Any:
    """Prepare a model for training by a method; return it.

    What is added is initialised, except on the meta device (`init_additions_of` does it later). A head for labels is
    trained beside a frozen base.
    is_loaded: what is added gets its values from files, so that the base need not be asked for any.

    Raises: ConfigError when the model does not take the method, or when quantised weights should be trained.
    """
    if method.trains_base:
        _refuse_quantised(model, method)
    model.requires_grad_(method.trains_base)
    method.add_to(model, family)
    if method.along:
        model.plan = replace(model.plan, added={**model.plan.added, **method.along})
    if not method.trains_base:
        train_label_head(model)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(f"tuning.method: {method.method} with these settings leaves nothing that is trained")
    added = added_parameters(model).values()
    if not any(weight.is_meta for weight in added):
        method.init_additions(model, generator)
        if not is_loaded and not any(weight.is_meta for weight in model.parameters()):
            method.init_from_base(model)
    return model


def _refuse_quantised(model: nn.Module, method: TuningMethod) -> None:
    if packed := [name for name, weight in model.named_parameters() if not weight.is_floating_point()]:
        raise ConfigError(
            f"tuning.method: {method.method} cannot train quantised weights ({', '.join(shorten(packed, 1))}); "
            "choose one that leaves the base as it is, or take the base as plain numbers: without model.quantise, or "
            "with model.config.bits=0 where it is packed on disk"
        )


def init_additions_of(model: nn.Module, method: TuningMethod, generator: torch.Generator | None = None) -> None:
    """Make what a method added to a model on the meta device, and only that, with its first values.

    They are those that `apply_tuning` gives to a model that is there.
    """
    allocate_additions(model)
    method.init_additions(model, generator)


def allocate_additions(model: nn.Module) -> None:
    """Make what a method added to a model on the meta device, and only that, without values."""
    for name, old in added_parameters(model).items():
        set_parameter(model, name, torch.empty_like(old, device="cpu"), requires_grad=old.requires_grad)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
