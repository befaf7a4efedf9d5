"""Experts that are read from disk when a token comes to them, for machines that cannot hold all of them.

What InfMoE was for. In inference an expert without tokens does not run (layers/experts.py), so it need not be there;
its norm stays in memory, for the scores are taken behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import torch
from torch import nn

from hanlin.core.parameters import set_parameter
from hanlin.layers.experts import Experts

_STAYS = "norm."


class Readable(Protocol):
    """Tensors by name, read when they are asked for."""

    def __getitem__(self, name: str) -> torch.Tensor: ...

    def forget(self, name: str) -> None:
        """Give back the memory that reading took."""
        ...


class ExpertMemory:
    """Keeps the experts that were used last, up to a limit.

    weights: by the model's names; limit_bytes: of all kept experts; dtype: in which they are kept.
    read: how often an expert was read so far.
    """

    def __init__(self, weights: Readable, limit_bytes: float, dtype: torch.dtype) -> None:
        self.weights, self.limit_bytes, self.dtype = weights, limit_bytes, dtype
        self.read = 0
        self._names: dict[str, dict[str, torch.Size]] = {}
        self._held: OrderedDict[str, nn.Module] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        return sum(self._size(name) for name in self._held)

    def attach(self, model: nn.Module, device: torch.device) -> None:
        """Let all experts of a model be read when they are needed; they are not in memory after that.

        Raises: ValueError when the limit is below the size of one expert.
        """
        for name, parameter in expert_weights(model).items():
            expert, _, inner = _split(name)
            self._names.setdefault(expert, {})[inner] = parameter.shape
        if too_large := [name for name in self._names if self._size(name) > self.limit_bytes]:
            size = self._size(too_large[0]) / 2**30
            raise ValueError(f"one expert takes {size:.3g} GiB, more than the {self.limit_bytes / 2**30:.3g} allowed")
        for name in self._names:
            module = model.get_submodule(name)
            self._drop(name, module, device)
            module.register_forward_pre_hook(partial(self._before, name, device))

    def _size(self, name: str) -> int:
        return sum(shape.numel() for shape in self._names[name].values()) * self.dtype.itemsize

    def _before(self, name: str, device: torch.device, module: nn.Module, _: object) -> None:
        """See that an expert is there when it runs."""
        if name in self._held:
            self._held.move_to_end(name)
            return
        while self._held and self.held_bytes + self._size(name) > self.limit_bytes:
            self._drop(*self._held.popitem(last=False), device)
        for inner in self._names[name]:
            full = f"{name}.{inner}"
            set_parameter(module, inner, self.weights[full].to(device, self.dtype, copy=True), requires_grad=False)
            self.weights.forget(full)
        self._held[name] = module
        self.read += 1

    def _drop(self, name: str, module: nn.Module, device: torch.device) -> None:
        for inner in self._names[name]:
            set_parameter(module, inner, torch.empty(0, dtype=self.dtype, device=device), requires_grad=False)


def expert_weights(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters of a model that are read from disk: of its experts, without their norms."""
    prefixes = tuple(f"{name}.experts." for name, module in model.named_modules() if isinstance(module, Experts))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes) and not _split(name)[2].startswith(_STAYS)
    }


def _split(name: str) -> tuple[str, str, str]:
    """The expert's module, a dot, and the parameter in it."""
    head, _, tail = name.partition(".experts.")
    number, dot, inner = tail.partition(".")
    return f"{head}.experts.{number}", dot, inner
