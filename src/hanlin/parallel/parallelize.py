"""A model, or this rank's share of it, brought to its device in the dtypes of a precision.

Trained weights are fp32 or, where that is asked for, bf16; frozen ones are stored in the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from hanlin.core.device import best_precision
from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan
from hanlin.core.ranks import read_ranks
from hanlin.layers.attention_kernels import AttentionKernel
from hanlin.layers.precision import DTYPES, Precision
from hanlin.parallel.layout_checks import combination_problems
from hanlin.parallel.mesh import Degrees, Mesh
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.recompute import recompute
from hanlin.recipe.settings import ParallelSettings


def parallelize(
    model: nn.Module,
    device: torch.device,
    precision: Precision | Literal["auto"] = "fp32",
    settings: ParallelSettings | None = None,
    *,
    copy: Callable[[], nn.Module] | None = None,
    attention: AttentionKernel = "auto",
    trained: torch.dtype = torch.float32,
) -> ParallelModel:
    """Bring the model, or this rank's share of it, to the device in the dtypes of `precision`.

    auto: what the device computes best in.
    What requires a gradient is trained. A model on the meta device comes out empty: see `ParallelModel.fill`.
    trained: dtype of the trained weights.
    copy: makes the same model once more (on the meta device), where a rank has several stages of a pipeline.

    Raises: ConfigError when the layout does not fit the model or the number of processes.
    """
    settings = settings or ParallelSettings()
    precision = best_precision(device) if precision == "auto" else precision
    mesh = Mesh(Degrees.of(settings, read_ranks().world), device)
    for key, text in combination_problems(settings):
        raise ConfigError(f"{key}: {text}")
    models = [
        _apply_layout(one, (DTYPES[precision], trained), settings, mesh) for one in _cut(model, settings, mesh, copy)
    ]
    return ParallelModel(models, mesh, settings, DTYPES[precision], attention)


def kept_dtype(weight: torch.Tensor, arithmetic: torch.dtype, trained: torch.dtype = torch.float32) -> torch.dtype:
    """In which a weight is kept where that is the dtype of the arithmetic, and trained ones are to be `trained`."""
    # fp64 is there for a comparison; quantised weights stay as they are packed.
    if not weight.is_floating_point() or weight.dtype == torch.float64:
        return weight.dtype
    return trained if weight.requires_grad else arithmetic


def _cut(
    model: nn.Module, settings: ParallelSettings, mesh: Mesh, copy: Callable[[], nn.Module] | None
) -> list[nn.Module]:
    """This rank's stages."""
    if mesh.size("pipe") == 1:
        return [model]
    from hanlin.parallel.stages import cut

    count = settings.num_stages
    own = range(mesh.rank("pipe"), count, mesh.size("pipe"))
    assert len(own) == 1 or copy is not None, "several stages on a rank need copies of the model"
    return [cut(model if copy is None or number == own[0] else copy(), number, count) for number in own]


def _apply_layout(
    model: nn.Module, dtypes: tuple[torch.dtype, torch.dtype], settings: ParallelSettings, mesh: Mesh
) -> nn.Module:
    """dtypes: of the arithmetic and of trained weights."""
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    for parameter in model.parameters():
        # Changing the data and not the parameter keeps tied weights tied.
        parameter.data = parameter.data.to(kept_dtype(parameter, *dtypes))
    if mesh.size("data") > 1:
        from hanlin.parallel.experts import share_experts

        share_experts(model, mesh)
    if mesh.size("tensor") > 1:
        from hanlin.parallel.tensor import divide

        divide(model, mesh.part("tensor"), sequence=settings.sequence_parallel)
    if settings.checkpoint_activations != "none":
        for blocks in plan.blocks:
            for block in getattr(model, blocks).children():
                recompute(block, settings.checkpoint_activations)
    return model
