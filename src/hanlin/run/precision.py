"""`train.precision: auto` is what the device computes best in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hanlin.core.cards import peak_flops
from hanlin.core.device import best_precision, device_memory, pick_device, precision_problem
from hanlin.core.errors import ConfigError
from hanlin.recipe.settings import Recipe
from hanlin.run.components import Components

if TYPE_CHECKING:
    import torch

    from hanlin.layers.precision import Precision


def precision_of(recipe: Recipe) -> Precision:
    """Of the arithmetic on the recipe's device.

    Raises: ConfigError where the device is not there, or has not what the recipe asks for.
    """
    device, asked = pick_device(recipe.run.device), recipe.train.precision
    if problem := precision_problem(asked, device):
        raise ConfigError(f"train.precision: {problem}")
    return best_precision(device) if asked == "auto" else asked


def known_peak(recipe: Recipe, device: torch.device, num_devices: int) -> float | None:
    """FLOP/s that so many devices like this one have at most in the recipe's precision; None where nobody knows."""
    card = device_memory(device)
    peak = None if card is None else peak_flops(card[0], precision_of(recipe))
    return None if peak is None else peak * num_devices


def weight_dtype_problem(recipe: Recipe, precision: Precision) -> str:
    """What keeps trained weights from the dtype that the recipe wants, in the arithmetic of a precision; "" if none."""
    asked = recipe.train.weight_dtype
    if asked == "fp32" or not recipe.tuning.trains_base or precision == asked:
        return ""
    return (
        f"{asked} weights are trained in the arithmetic of {asked}, and train.precision is {precision}; set it to bf16"
    )


def trained_dtype(recipe: Recipe) -> torch.dtype:
    """Of trained weights. Raises: ConfigError where they cannot be kept so in the recipe's precision."""
    from hanlin.layers.precision import DTYPES

    if problem := weight_dtype_problem(recipe, precision_of(recipe)):
        raise ConfigError(f"train.weight_dtype: {problem}")
    return DTYPES[recipe.train.weight_dtype if recipe.tuning.trains_base else "fp32"]


def saved_dtype(recipe: Recipe) -> torch.dtype:
    """Of what is written of a trained base."""
    from hanlin.layers.precision import DTYPES

    return DTYPES[recipe.train.save_dtype] if recipe.train.save_dtype else trained_dtype(recipe)


def with_precision(components: Components) -> Components:
    """The same, of a recipe that says its precision.

    Raises: see `precision_of`.
    """
    recipe = components.recipe
    return replace(components, recipe=saying(recipe, precision_of(recipe)))


def saying(recipe: Recipe, precision: str) -> Recipe:
    """The same recipe with another `train.precision`."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
