"""The first values of a model's weights: the same ones in every layout, made block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hanlin.core.plan import Plan


def init_weights(
    make: Callable[[], nn.Module], seed: int, part: str | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and values of every parameter of a new model; no more than a block is held at once.

    make: a model on the meta device; part: only this one of its parts ("head"). The values of a block depend on nothing
    but the seed and its name.
    """
    model: Any = make()
    for name, unit in _units(model):
        if part not in (None, name):
            continue
        unit.to_empty(device="cpu")
        model.init_weights(_generator(seed, name))
        yield from ((f"{name}.{inner}", weight.detach()) for inner, weight in unit.named_parameters())
        unit.to("meta")
    own = {} if part else dict(model.named_parameters(recurse=False))
    for name, weight in own.items():
        setattr(model, name, nn.Parameter(torch.empty_like(weight, device="cpu")))
    if own:
        model.init_weights(_generator(seed, ""))
        yield from ((name, weight.detach()) for name, weight in model.named_parameters(recurse=False))


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks, and the other parts, by name."""
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    for name, child in model.named_children():
        if name in plan.blocks:
            yield from ((f"{name}.{number}", block) for number, block in child.named_children())
        else:
            yield name, child


def _generator(seed: int, name: str) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(number)
