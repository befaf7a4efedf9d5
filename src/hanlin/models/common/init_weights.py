"""The first values of a model's weights: how they are drawn, and the same ones in every layout, made block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hanlin.core.plan import Plan
from hanlin.layers.experts import Experts
from hanlin.layers.label_head import LabelHead
from hanlin.layers.prefix import PrefixSource
from hanlin.layers.quantised import QuantisedLinear
from hanlin.layers.soft_prompt import SoftPrompt

_ADDED = (PrefixSource, SoftPrompt)


def init_parameters(model: nn.Module, std: Callable[[str], float], generator: torch.Generator | None = None) -> None:
    """Fill every weight that exists, module by module in their order: matrices from a normal distribution, weights of
    norms with 1, biases with 0.

    std: of a matrix, by the name of its module. What tuning adds and packed weights, which are never fresh, stay.
    """
    added = {part for module in model.modules() if isinstance(module, _ADDED) for part in module.modules()}
    for name, module in model.named_modules():
        if module in added or isinstance(module, QuantisedLinear):
            continue
        if isinstance(module, LabelHead | Experts):
            module.init_weights(generator)
        weight, bias = (module._parameters.get(leaf) for leaf in ("weight", "bias"))
        if weight is not None and weight.dim() == 1:
            nn.init.ones_(weight)
        elif weight is not None:
            nn.init.normal_(weight, std=std(name), generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)


def std_by_depth(name: str, std: float, num_layers: int) -> float:
    """GPT-2's: smaller by sqrt(2 * num_layers) for the linears whose results are added up along the blocks."""
    return std / (2 * num_layers) ** 0.5 if name.endswith((".output", ".down")) else std


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
