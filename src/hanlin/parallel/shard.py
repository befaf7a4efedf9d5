"""Sharding (FSDP2): a data rank holds a share of weights, gradients and optimizer, and gathers what it needs."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from hanlin.core.plan import Plan
from hanlin.parallel.mesh import Mesh


def shard(
    stage: nn.Module,
    model: nn.Module,
    mesh: Mesh,
    *,
    frees_weights: bool,
    offload: bool,
    gathered: torch.dtype | None = None,
    whole: Set[nn.Parameter] = frozenset(),
) -> None:
    """Share each block, and what is in none, among the data ranks.

    stage: what is called (the model, or what wraps it); frees_weights: gather the weights again in the backward pass
    (ZeRO-3) instead of keeping them from the forward pass on (ZeRO-2); offload: keep the shares in the CPU's memory;
    gathered: dtype in which the blocks' weights travel and are computed with (None: their own), gradients are added in
    fp32 all the same; whole: what is not to be shared.
    """
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    axes = ("replicate", "shard") if mesh.size("replicate") > 1 else ("shard",)
    policy = CPUOffloadPolicy(pin_memory=mesh.device.type != "cpu") if offload else OffloadPolicy()
    options: dict[str, Any] = {"mesh": mesh.part(*axes), "offload_policy": policy, "ignored_params": set(whole)}
    # Autocast chooses the dtypes of activations, so that the stream of hidden states stays as precise as ever.
    half = MixedPrecisionPolicy(
        param_dtype=gathered, reduce_dtype=gathered and torch.float32, cast_forward_inputs=False
    )
    for blocks in plan.blocks:
        for block in getattr(model, blocks).children():
            fully_shard(block, reshard_after_forward=frees_weights, mp_policy=half, **options)
    fully_shard(stage, reshard_after_forward=False, **options)


def reduce_gradients(stage: nn.Module, *, now: bool) -> None:
    """Whether the ranks add their gradients after the next backward pass, and keep their share of the sum."""
    assert isinstance(stage, FSDPModule)
    stage.set_requires_gradient_sync(now)
    stage.set_is_last_backward(now)


def release_gathered(stage: nn.Module) -> None:
    """Let go of weights that a pass without gradients has left gathered."""
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
