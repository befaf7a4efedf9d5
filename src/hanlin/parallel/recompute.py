"""Computing a block again in the backward pass instead of keeping what it computed."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hanlin.layers.quantised import computed_again

HowRecomputed = Literal["full", "offload", "selective"]
"""What a recomputed block keeps; see `recompute`."""

_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}
"""Operations whose results `selective` keeps: the matrix products, which cost the most to compute again."""


def recompute(block: nn.Module, how: HowRecomputed) -> None:
    """Let a block keep its input only (full), in the CPU's memory (offload), or the results of its matrix products as
    well (selective).
    """
    forward, again = block.forward, computed_again()(block.forward)
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if how == "selective" else {}

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with saved_tensors_hooks(_to_host, _from_host) if how == "offload" else nullcontext():
            return checkpoint(again, *args, use_reentrant=False, **contexts, **kwargs)

    block.forward = run


def _to_host(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
    """Nothing waits for the copy: only the device reads it, in its own order."""
    device = tensor.device
    if device.type in ("cpu", "meta"):
        return device, tensor
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type != "mps")
    return device, there.copy_(tensor, non_blocking=True)


def _from_host(kept: tuple[torch.device, torch.Tensor]) -> torch.Tensor:
    device, tensor = kept
    return tensor.to(device, non_blocking=True)


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
