"""Settings -> the same model, changed in place: what is added, what is frozen, what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from hanlin.core.errors import ConfigError, shorten
from hanlin.layers.label_head import train_label_head
from hanlin.tuning.lora import LoraLinear, add_lora
from hanlin.tuning.prefix import PrefixEncoder, add_prefix
from hanlin.tuning.soft_prompt import NAME as SOFT_PROMPT
from hanlin.tuning.soft_prompt import add_soft_prompt, begin_at_random

if TYPE_CHECKING:
    from hanlin.recipe.settings import TuningSettings


class HasTargets(Protocol):
    """What tuning uses of a `models.family.Family`."""

    @property
    def name(self) -> str: ...
    @property
    def lora_targets(self) -> tuple[str, ...]: ...


def apply_tuning(
    model: nn.Module, settings: TuningSettings, family: HasTargets, generator: torch.Generator | None = None
) -> Any:
    """Prepare a model for training by the settings' method; return it.

    What is added is initialised, except on the meta device (`init_tuning` does it later). A head for labels is trained
    beside a frozen base.

    Raises: ConfigError when a target names no linear of the model, when it takes no prefix or no soft prompts, or when
    quantised weights should be trained.
    """
    if settings.method == "full":
        return _refuse_quantised(model).requires_grad_(True)
    if settings.method == "prefix":
        model.requires_grad_(False)
        add_prefix(model, settings.prefix_length, projection=settings.prefix_projection, dropout=settings.dropout)
    elif settings.method == "prompt":
        wanted = settings.prompt
        model.requires_grad_(wanted.trains_model)
        prompt = add_soft_prompt(model, wanted.length, sees_tokens=wanted.sees_tokens, is_seen=wanted.is_seen)
        prompt.requires_grad_(wanted.trains_prompts)
    else:
        names = lora_names(model, settings.targets or family.lora_targets)
        model.requires_grad_(False)
        add_lora(model, names, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout, form=settings.form)
    if not settings.trains_base:
        train_label_head(model)
    init_tuning(model, generator)
    return model


def _refuse_quantised(model: nn.Module) -> nn.Module:
    if packed := [name for name, weight in model.named_parameters() if not weight.is_floating_point()]:
        raise ConfigError(
            f"tuning.method: full cannot train quantised weights ({', '.join(shorten(packed, 1))}); choose lora "
            "or prefix, or unpack the base with model.config.bits=0"
        )
    return model


def init_tuning(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give what a tuning method added its first values."""
    for module in model.modules():
        if isinstance(module, LoraLinear | PrefixEncoder) and not next(iter(module.parameters())).is_meta:
            module.init_addition(generator)
    prompt = getattr(model, SOFT_PROMPT, None)
    if prompt is not None and not prompt.weight.is_meta:
        begin_at_random(model, generator)


def fill_additions(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Make what a tuning method added to a model on the meta device, and only that, with its first values.

    They are those that `apply_tuning` gives to a model that is there.
    """
    for module in model.modules():
        for name in getattr(module, "added", ()):
            owner, _, last = name.rpartition(".")
            place = module.get_submodule(owner)
            old = place.get_parameter(last)
            setattr(place, last, nn.Parameter(torch.empty_like(old, device="cpu"), requires_grad=old.requires_grad))
        if isinstance(module, LoraLinear | PrefixEncoder):
            module.init_addition(generator)
    if getattr(model, SOFT_PROMPT, None) is not None:
        begin_at_random(model, generator)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def lora_names(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The linears whose names end with a target, in the model's order.

    Raises: ConfigError.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    available = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
    if not targets:
        raise ConfigError(f"tuning.targets: this family has no default; choose among the linears {available}")
    idle = [target for target in targets if not any(_ends_with(name, target) for name in linears)]
    if idle:
        raise ConfigError(f"tuning.targets: no linear is called {', '.join(idle)}; the model has {available}")
    return [name for name in linears if any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
