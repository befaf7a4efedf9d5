"""GELU with the error function, also where a device has the approximation by tanh only."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

__all__ = ["gelu"]


def gelu(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """torch's, with the numbers of the CPU on every device; approximate: none or tanh.

    torch_npu computes the approximation whatever is asked for (op-plugin, GeluKernelNpuOpApi.cpp).
    """
    if approximate == "none" and input.device.type == "npu":
        return _ErfGelu.apply(input)
    return functional.gelu(input, approximate=approximate)


class _ErfGelu(torch.autograd.Function):
    """Computed in fp32, as torch's kernels do; only the input is kept for the gradient."""

    @staticmethod
    def forward(ctx, input: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input)
        wide = input.float()
        return (wide * _normal_cdf(wide)).to(input.dtype)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (input,) = ctx.saved_tensors
        wide = input.float()
        density = (-0.5 * wide.square()).exp() / math.sqrt(2 * math.pi)
        return (gradient.float() * (_normal_cdf(wide) + wide * density)).to(gradient.dtype)


def _normal_cdf(numbers: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(numbers * math.sqrt(0.5)))
