"""IA3 (Liu et al. 2022): learned vectors that rescale keys, values and the inner activations of each ffn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Along
from hanlin.recipe.tuning import TuningMethod


class Ia3(TuningMethod):
    # Last parts of the names of the linears whose outputs are rescaled ...
    outputs: tuple[str, ...] = ("key", "value")
    # ... and of those whose inputs are.
    inputs: tuple[str, ...] = ("down",)

    along: ClassVar = {"ia3_outputs": Along(outputs=0), "ia3_inputs": Along(inputs=0)}

    def add_to(self, model: Any, family: Any) -> None:
        for linear in self._linears(model, self.outputs):
            _add_vector(linear, "ia3_outputs", linear.out_features)
            linear.register_forward_hook(_rescale_outputs)
        for linear in self._linears(model, self.inputs):
            _add_vector(linear, "ia3_inputs", linear.in_features)
            linear.register_forward_pre_hook(_rescale_inputs)

    def init_additions(self, model: Any, generator: torch.Generator | None) -> None:
        """Start as nothing."""
        for name, vector in model.named_parameters():
            if name.rpartition(".")[2] in self.along:
                nn.init.ones_(vector)

    def merge(self, model: Any) -> None:
        for linear in self._linears(model, self.outputs):
            linear.weight.data *= linear.ia3_outputs[:, None]
            if linear.bias is not None:
                linear.bias.data *= linear.ia3_outputs
            linear.ia3_outputs = None
        for linear in self._linears(model, self.inputs):
            linear.weight.data *= linear.ia3_inputs
            linear.ia3_inputs = None

    def _linears(self, model: nn.Module, names: tuple[str, ...]) -> Iterator[Any]:
        found = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in names}
        if missing := set(names) - {name.rpartition(".")[2] for name in found}:
            raise ConfigError(f"tuning.method: the model has no linear called {' or '.join(sorted(missing))}")
        yield from found.values()


method = Ia3


def _add_vector(linear: Any, name: str, size: int) -> None:
    vector = torch.empty(size, dtype=torch.float32, device=linear.weight.device)
    linear.register_parameter(name, nn.Parameter(vector))
    linear.added = (name,)


def _rescale_outputs(linear: Any, _: Any, outputs: torch.Tensor) -> torch.Tensor:
    return outputs if linear.ia3_outputs is None else (outputs * linear.ia3_outputs).to(outputs.dtype)


def _rescale_inputs(linear: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return inputs if linear.ia3_inputs is None else ((inputs[0] * linear.ia3_inputs).to(inputs[0].dtype),)
