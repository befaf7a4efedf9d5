"""What a run trained, out into folders: a base, or what a tuning method added to one."""

from __future__ import annotations

from pathlib import Path

import torch

from hanlin.adapters.folder import ADAPTER_FOLDER, save_adapter
from hanlin.core.files import published
from hanlin.core.parameters import set_parameter
from hanlin.formats.load import added_parameters, base_parameters, save_base
from hanlin.formats.values import Cast
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.run.components import Components
from hanlin.run.precision import saved_dtype
from hanlin.run.weights import base_weights, empty_model
from hanlin.tuning.apply import apply_tuning


def export(components: Components, parallel_model: ParallelModel, target: Path) -> None:
    """Write a base folder or, when the base is frozen, an adapter folder; the one in the other if both are trained.

    Every rank must call it; the main one writes.
    """
    tuning, family = components.recipe.tuning, components.family.name
    model = _gathered(components, parallel_model)
    if model is None:
        return
    if not tuning.trains_base:
        save_adapter(model, tuning, target, family=family, overwrite=True, quantise=components.recipe.model.quantise)
        return
    with published(target, "replace") as beside:
        frozen = _frozen_weights(components)
        exact = () if components.recipe.train.save_dtype else frozen
        weights = Cast(target, {**base_parameters(model), **frozen}, saved_dtype(components.recipe), exact)
        save_base(beside, components.family, components.config, weights, components.tokenizer)
        if added_parameters(model):
            save_adapter(model, tuning, beside / ADAPTER_FOLDER, family=family)


def _frozen_weights(components: Components) -> dict[str, torch.Tensor]:
    """Weights of a base that is trained but for these, as they came: in memory they may be rounded."""
    model = apply_tuning(empty_model(components), components.recipe.tuning, components.family)
    frozen = {name for name, weight in base_parameters(model).items() if not weight.requires_grad}
    return {name: one for name, one in base_weights(components, [*frozen]) if name in frozen} if frozen else {}


def _gathered(components: Components, parallel_model: ParallelModel) -> torch.nn.Module | None:
    """The model with what was trained, on the main rank; None on the others."""
    if parallel_model.is_whole:
        return parallel_model.model
    tuning = components.recipe.tuning
    model = apply_tuning(empty_model(components), tuning, components.family)
    names = None if tuning.trains_base else list(added_parameters(model))
    for name, weight in parallel_model.gather(names):
        if parallel_model.mesh.is_main:
            set_parameter(model, name, weight, requires_grad=False)
    return model if parallel_model.mesh.is_main else None
