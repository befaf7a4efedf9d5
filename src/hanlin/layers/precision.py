"""Which dtype the arithmetic of a brick has."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
"""Of the arithmetic of forward and backward passes; weights are fp32."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products with `tensor`: autocast's inside autocast, else the tensor's own."""
    kind = tensor.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # the meta device has none
    return torch.get_autocast_dtype(kind) if is_cast else tensor.dtype


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32, or in fp64 if it is that already."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
