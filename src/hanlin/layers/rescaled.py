"""Linears whose outputs or inputs are multiplied by trained vectors (IA3, Liu et al. 2022).

The vectors are parameters `ia3_outputs` `[out]` and `ia3_inputs` `[in]` of the linear, in fp32, and hooks multiply by
them, so that a linear of any kind, also a packed one, may have them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

OUTPUTS, INPUTS = "ia3_outputs", "ia3_inputs"


def rescale_outputs(linear: Any) -> None:
    """Add an (uninitialised) vector for the outputs, bias and all."""
    _add_vector(linear, OUTPUTS, linear.out_features)
    linear.register_forward_hook(_rescale_outputs)


def rescale_inputs(linear: Any) -> None:
    """Add an (uninitialised) vector for the inputs."""
    _add_vector(linear, INPUTS, linear.in_features)
    linear.register_forward_pre_hook(_rescale_inputs)


def merge_rescaling(model: nn.Module) -> None:
    """Work every vector into its linear's weight and bias, which must be plain numbers."""
    for module in model.modules():
        linear: Any = module
        names = [name for name in (OUTPUTS, INPUTS) if getattr(linear, name, None) is not None]
        for name in names:
            vector = linear.get_parameter(name).detach().to(linear.weight.device)
            _multiply(linear.weight, vector[:, None] if name == OUTPUTS else vector)
            if name == OUTPUTS and linear.bias is not None:
                _multiply(linear.bias, vector)
            linear.register_parameter(name, None)
        if names:
            linear.added = ()


def _multiply(weight: torch.Tensor, vector: torch.Tensor) -> None:
    weight.data.copy_(weight.data.float() * vector)


def _add_vector(linear: Any, name: str, size: int) -> None:
    vector = torch.empty(size, dtype=torch.float32, device=linear.weight.device)
    linear.register_parameter(name, nn.Parameter(vector))
    linear.added = (*getattr(linear, "added", ()), name)


def _rescale_outputs(linear: Any, _: Any, outputs: torch.Tensor) -> torch.Tensor:
    return outputs if linear.ia3_outputs is None else (outputs * linear.ia3_outputs).to(outputs.dtype)


def _rescale_inputs(linear: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return inputs if linear.ia3_inputs is None else ((inputs[0] * linear.ia3_inputs).to(inputs[0].dtype),)
