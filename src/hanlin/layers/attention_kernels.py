"""Which kernels compute attention on a device (`run.attention`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.attention import SDPBackend, sdpa_kernel

from hanlin.core.device import has_bf16

__all__ = [
    "ALLOWED_KERNELS",
    "AttentionKernel",
    "attention_kernels",
    "lone_kernel",
    "lone_kernels",
    "takes_shared_keys",
]

AttentionKernel = Literal["auto", "flash", "efficient", "cudnn", "math"]

_FLASH, _EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
ALLOWED_KERNELS: dict[AttentionKernel, list[SDPBackend]] = {
    # Not cuDNN, which torch prefers on sm90: it makes a plan for every new shape, and the shapes of packed rows and of
    # answers are new all the time; with masks its gradients can be NaN (pytorch/pytorch#196678).
    "auto": [_FLASH, _EFFICIENT, SDPBackend.MATH],
    "flash": [_FLASH, SDPBackend.MATH],
    "efficient": [_EFFICIENT, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, _FLASH, _EFFICIENT, SDPBackend.MATH],
    "math": [SDPBackend.MATH],
}


@contextmanager
def attention_kernels(device: torch.device, choice: AttentionKernel = "auto") -> Iterator[None]:
    """Let attention inside be computed by these kernels, the first one in this order that takes its arguments.

    auto: torch's own choice, on CUDA without cuDNN. Any other takes plain matrix products where the kernel named does
    not take the arguments (flash takes no mask). What torch uses outside is as before.
    """
    if choice == "auto" and device.type != "cuda":
        yield
        return
    with sdpa_kernel(ALLOWED_KERNELS[choice], set_priority=choice == "cudnn"):
        yield


def lone_kernels(device: torch.device) -> Sequence[AttentionKernel]:
    """Those among which there is a choice on a device; elsewhere its maker chooses."""
    if device.type == "cuda":
        return ("flash", "efficient", "cudnn", "math")
    return ("flash", "math") if device.type == "cpu" else ()


@contextmanager
def lone_kernel(kernel: AttentionKernel) -> Iterator[None]:
    """Let nothing else compute attention inside; what it does not take raises a RuntimeError."""
    with sdpa_kernel(ALLOWED_KERNELS[kernel][0]):
        yield


def takes_shared_keys(query: torch.Tensor) -> bool:
    """Whether kernels take fewer heads of keys than of queries. Of CUDA's only flash does, which is not there before
    sm80 and not for fp32. On NPUs before Atlas A2, which have no bf16 either, there are matrix products only, and they
    drop `enable_gqa` (op-plugin).
    """
    if query.device.type == "cuda":
        is_half = query.dtype in (torch.float16, torch.bfloat16)
        return is_half and query.shape[-1] <= 256 and flash_sdp_enabled() and has_bf16(query.device)
    return query.device.type != "npu" or has_bf16(query.device)
