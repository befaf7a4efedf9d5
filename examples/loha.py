"""LoHa (Hyeon-Woo et al. 2021): additions to linears that are the product, number by number, of two low-rank ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Along
from hanlin.recipe.tuning import TuningMethod

_INNER, _OUTER = ("loha_A1", "loha_A2"), ("loha_B1", "loha_B2")


class LoHa(TuningMethod):
    # Inner size of each of the two; that of their product may be its square.
    rank: int = Field(default=4, gt=0)
    # The addition is multiplied by alpha / rank.
    alpha: float = Field(default=4.0, gt=0)
    # Last parts of the names of the linears that get an addition.
    targets: tuple[str, ...] = ("query", "value")

    fixed: ClassVar = ("rank", "alpha", "targets")
    along: ClassVar = {**dict.fromkeys(_INNER, Along(inputs=1)), **dict.fromkeys(_OUTER, Along(outputs=0))}

    def add_to(self, model: Any, family: Any) -> None:
        for linear in self._linears(model):
            on = {"dtype": torch.float32, "device": linear.weight.device}
            for name in _INNER:
                linear.register_parameter(name, nn.Parameter(torch.empty(self.rank, linear.in_features, **on)))
            for name in _OUTER:
                linear.register_parameter(name, nn.Parameter(torch.empty(linear.out_features, self.rank, **on)))
            linear.added = (*_INNER, *_OUTER)
            linear.register_forward_hook(self._add)

    def init_additions(self, model: Any, generator: torch.Generator | None) -> None:
        """Start as nothing: one of the four is zero."""
        for linear in self._linears(model):
            for name in linear.added:
                nn.init.normal_(linear.get_parameter(name), std=0.1, generator=generator)
            nn.init.zeros_(linear.loha_B2)

    def merge(self, model: Any) -> None:
        for linear in self._linears(model):
            # The factor of a linear of CPM-Bee stands behind its weight, and not behind what is added to its output.
            linear.weight.data += self._product(linear) / getattr(linear, "scale", 1.0)
            for name in linear.added:
                linear.register_parameter(name, None)

    def _product(self, linear: Any) -> torch.Tensor:
        both = (linear.loha_B1 @ linear.loha_A1) * (linear.loha_B2 @ linear.loha_A2)
        return both * (self.alpha / self.rank)

    def _add(self, linear: Any, inputs: tuple[torch.Tensor], outputs: torch.Tensor) -> torch.Tensor | None:
        if linear.loha_A1 is None:
            return None
        return outputs + functional.linear(inputs[0].to(linear.loha_A1.dtype), self._product(linear)).to(outputs.dtype)

    def _linears(self, model: nn.Module) -> Iterator[Any]:
        found = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in self.targets}
        if missing := set(self.targets) - {name.rpartition(".")[2] for name in found}:
            raise ConfigError(f"tuning.targets: the model has no linear called {' or '.join(sorted(missing))}")
        yield from found.values()


method = LoHa
