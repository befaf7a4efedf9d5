"""Which dtype the arithmetic of a brick has."""

from __future__ import annotations

import torch


def matmul_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products with `tensor`: autocast's inside autocast, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32, or in fp64 if it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
