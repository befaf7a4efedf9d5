"""Learned vectors that rescale keys, values and the inner activations of each ffn (IA3, Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hanlin.core.plan import Along
from hanlin.recipe.tuning import TuningMethod

if TYPE_CHECKING:
    import torch

    from hanlin.adapters.adapter import AdapterFormat

__all__ = ["Ia3Tuning", "method"]


class Ia3Tuning(TuningMethod):
    method: Literal["ia3"] = "ia3"
    # Last parts of the names of the linears whose outputs are rescaled.
    outputs: tuple[str, ...] = ("key", "value")
    # Last parts of the names of the linears whose inputs are rescaled.
    inputs: tuple[str, ...] = ("down",)

    fixed: ClassVar = ("outputs", "inputs")
    along: ClassVar = {"ia3_outputs": Along(outputs=0), "ia3_inputs": Along(inputs=0)}

    def add_to(self, model: Any, family: Any) -> None:
        from hanlin.layers.rescaled import rescale_inputs, rescale_outputs
        from hanlin.tuning.lora import linears_called

        for name in linears_called(model, self.outputs, "tuning.outputs"):
            rescale_outputs(model.get_submodule(name))
        for name in linears_called(model, self.inputs, "tuning.inputs"):
            rescale_inputs(model.get_submodule(name))

    def init_additions(self, model: Any, generator: torch.Generator | None) -> None:
        """Start as nothing."""
        from torch import nn

        for name, vector in model.named_parameters():
            if name.rpartition(".")[2] in self.along:
                nn.init.ones_(vector)

    def merge(self, model: Any) -> None:
        from hanlin.layers.rescaled import merge_rescaling

        merge_rescaling(model)

    @classmethod
    def formats(cls) -> Mapping[str, AdapterFormat]:
        from hanlin.adapters.peft_ia3 import PEFT_IA3

        return {"peft": PEFT_IA3}


method = Ia3Tuning
