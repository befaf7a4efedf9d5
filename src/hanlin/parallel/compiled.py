"""Blocks compiled by `torch.compile`, each by itself (`train.compile: blocks`).

All blocks of a kind share the compiled code: one call of it has the context of its block only (`for_block`), and every
length is a variable of it. It stands inside recomputation and inside what shards weights, which see a block as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan
from hanlin.parallel.layout_checks import compile_problems
from hanlin.recipe.settings import Recipe

__all__ = ["compile_block", "compile_blocks"]

log = logging.getLogger(__name__)


@runtime_checkable
class OfAllBlocks(Protocol):
    """What all blocks share, from which each one takes its own by its name."""

    def for_block(self, name: str) -> Any:
        """The same for one block, which goes by the name "" then."""
        ...


def compile_blocks(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model, of which every block runs compiled if the recipe says so; before it is brought to its layout.

    Raises: ConfigError where model or layout do not let that be.
    """
    if recipe.train.compile == "none":
        return model
    for key, text in compile_problems(model, recipe.parallel):
        raise ConfigError(f"{key}: {text}")
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    for block in (block for blocks in plan.blocks for block in getattr(model, blocks).children()):
        compile_block(block)
    return model


def compile_block(block: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let a block run compiled where gradients are wanted; elsewhere (evaluation, answers) it runs as before.

    What cannot be compiled on this machine runs as before too, with one line in the log.
    """
    from torch._dynamo.exc import TorchDynamoException  # the compiler is read where it is asked for
    from torch._functorch import config

    forward = block.forward
    compiled: Any = torch.compile(forward, fullgraph=True, dynamic=True, backend=backend)

    def run(*args: Any) -> Any:
        nonlocal compiled
        if compiled is None or not torch.is_grad_enabled():
            return forward(*args)
        try:
            # The backward pass is compiled with the forward pass, so that what cannot be is found here.
            with config.patch(force_non_lazy_backward_lowering=True):
                return compiled(*_without_name(args))
        except TorchDynamoException as error:
            compiled = None
            _tell(type(block).__name__, error)
            return forward(*args)

    block.forward = run


def _without_name(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A name would be a constant of the code: there would be as many codes as blocks."""
    if len(args) == 3 and isinstance(args[1], OfAllBlocks):
        hidden, context, name = args
        return hidden, context.for_block(name), ""
    return args


def _tell(kind: str, error: Exception) -> None:
    reason = next((line for line in str(error).splitlines() if line.strip()), "")
    log.warning("train.compile: %s runs without it: %s: %s", kind, type(error).__name__, reason[:200])
