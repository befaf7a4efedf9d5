"""Computing a block again in the backward pass instead of keeping what it computed."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}
"""Operations whose results `selective` keeps: the matrix products, which cost the most to compute again."""


def recompute(block: nn.Module, how: Literal["full", "selective"]) -> None:
    """Let a block keep its input only (full), or the results of its matrix products as well (selective)."""
    forward = block.forward
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if how == "selective" else {}

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **contexts, **kwargs)

    block.forward = run


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
