"""Tensors of the host brought to a device in one copy that nothing waits for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["on_host", "to_device"]

_ALIGNMENT = 16
"""Bytes; a tensor must begin at a multiple of its elements' size."""


def to_device(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The same tensors there. From the CPU they go side by side in one buffer of pinned memory: a copy of each would
    cost a launch, and from memory that can be paged out the host would wait for it. What was brought there is known
    here too (`on_host`).
    """
    here = [tensor for tensor in tensors.values() if tensor.device.type == "cpu"]
    if device.type == "cpu" or len(here) < len(tensors):
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    begins = [0]
    for tensor in here:
        begins.append(begins[-1] + math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT)
    buffer = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=device.type != "mps")
    for tensor, begin in zip(here, begins, strict=False):
        _view(buffer, begin, tensor).copy_(tensor)
    there = buffer.to(device, non_blocking=True)
    found = {}
    for (name, tensor), begin in zip(tensors.items(), begins, strict=False):
        bearer: Any = _view(there, begin, tensor)
        bearer.host = tensor
        found[name] = bearer
    return found


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The values in memory of the host: those that were brought to the device, or else fetched, which waits for it."""
    known: torch.Tensor | None = getattr(tensor, "host", None)
    return tensor.cpu() if known is None else known


def _view(buffer: torch.Tensor, begin: int, like: torch.Tensor) -> torch.Tensor:
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
