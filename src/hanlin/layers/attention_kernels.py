"""Which kernels compute attention on a device (`run.attention`).

Models ask when they make their masks, since some kernels need none: on CUDA flash attention takes samples one behind
the other (layers/varlen.py), and `flex_attention` computes a bias pair by pair (layers/flex.py). All else
goes to `scaled_dot_product_attention`, among whose kernels torch chooses.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.attention import SDPBackend, sdpa_kernel

from hanlin.core.device import AMPERE, cuda_capability, has_bf16
from hanlin.layers.flex import rehearse_flex
from hanlin.layers.varlen import rehearse_varlen

__all__ = [
    "ALLOWED_KERNELS",
    "AttentionKernel",
    "AttentionUse",
    "KernelScope",
    "attention_kernels",
    "flash_takes",
    "kernel_scope",
    "lone_kernel",
    "lone_kernels",
    "planned_kernels",
    "takes_shared_keys",
    "works_here",
]

log = logging.getLogger(__name__)

AttentionKernel = Literal["auto", "varlen", "flex", "flash", "efficient", "cudnn", "math"]

_FLASH, _EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
ALLOWED_KERNELS: dict[AttentionKernel, list[SDPBackend]] = {
    # Not cuDNN, which torch prefers on sm90: it makes a plan for every new shape, and the shapes of packed rows and of
    # answers are new all the time; with masks its gradients can be NaN (pytorch/pytorch#196678).
    "auto": [_FLASH, _EFFICIENT, SDPBackend.MATH],
    "varlen": [SDPBackend.MATH],
    "flex": [_FLASH, _EFFICIENT, SDPBackend.MATH],
    "flash": [_FLASH, SDPBackend.MATH],
    "efficient": [_EFFICIENT, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, _FLASH, _EFFICIENT, SDPBackend.MATH],
    "math": [SDPBackend.MATH],
}
"""Of `scaled_dot_product_attention`, by `run.attention`."""

_LARGE_BIAS = 2**29
"""Scores of all heads from which on their bias is not written down: 1 GiB in half precision."""

Rehearsal = Callable[[torch.device, torch.dtype, int], float]
"""Computes a little with a kernel, forwards and backwards, and says how far it is from plain products; int: the
head_dim."""


@dataclass(frozen=True)
class AttentionUse:
    """How a model attends: dtype of its queries, keys and values; dropout: share of the probabilities that is dropped;
    is_trained: whether a gradient is wanted.
    """

    dtype: torch.dtype
    head_dim: int
    dropout: float = 0.0
    is_trained: bool = False


@dataclass(frozen=True)
class KernelScope:
    """Whose kernels there are, and which of them may be used.

    kind: of the device, by torch's name; choice: `run.attention`; device: None where it is only planned;
    planned_version: its `version` then.
    """

    kind: str
    choice: AttentionKernel
    device: torch.device | None
    planned_version: int = 0

    @property
    def version(self) -> int:
        """CUDA's compute capability, 80 for 8.0; elsewhere 0."""
        return self.planned_version if self.device is None else cuda_capability(self.device)

    def takes_sequences(self, use: AttentionUse) -> bool:
        """Whether flash attention computes samples that lie one behind the other, none looking ahead.

        From `torch.nn.attention.varlen`, which has no dropout ("hardcoded to 0") and hands all to flash attention of
        CUDA; `mha_varlen_fwd` of its flash_api.cpp takes fewer heads of keys than of queries, puts the last query at
        the last key, and wants heads of a multiple of 8.
        """
        is_wanted = self.kind == "cuda" and self.choice in ("auto", "varlen", "flex")
        takes = is_wanted and not use.dropout and use.head_dim % 8 == 0 and flash_takes(use, self.version)
        return takes and (self.device is None or works_here(rehearse_varlen, self.device, use.dtype, use.head_dim))

    def takes_pairs(self, use: AttentionUse, scores: int) -> bool:
        """Whether `flex_attention` computes a bias pair by pair: a bias of so many scores, over all heads, that it is
        better not written down, or any where `run.attention` is flex. It has no dropout, and its kernel (Triton) was
        made for CUDA (`_validate_device` of torch's flex_attention.py: no gradients on CPUs).
        """
        is_wanted = self.choice == "flex" or (self.choice == "auto" and scores >= _LARGE_BIAS)
        takes = self.kind == "cuda" and is_wanted and not use.dropout and self.version >= AMPERE
        return takes and (self.device is None or works_here(rehearse_flex, self.device, use.dtype, use.head_dim))


_SCOPE: ContextVar[KernelScope | None] = ContextVar("attention kernels", default=None)


def kernel_scope(device: torch.device) -> KernelScope:
    """That of `attention_kernels` around the caller, else of all kernels of a device."""
    return _SCOPE.get() or _scope_of(device, "auto")


def _scope_of(device: torch.device, choice: AttentionKernel) -> KernelScope:
    return KernelScope(device.type, choice, device)


@contextmanager
def attention_kernels(device: torch.device, choice: AttentionKernel = "auto") -> Iterator[None]:
    """Let attention inside be computed by these kernels, the first one in this order that takes its arguments.

    auto: samples one behind the other by flash attention where it takes them, else torch's own choice, on CUDA without
    cuDNN. Any other takes plain matrix products where the kernel named does not take the arguments (flash takes no
    mask). What torch uses outside is as before.
    """
    with _scope(_scope_of(device, choice)):
        if choice == "auto" and device.type != "cuda":
            yield
            return
        with sdpa_kernel(ALLOWED_KERNELS[choice], set_priority=choice == "cudnn"):
            yield


@contextmanager
def planned_kernels(kind: str, version: int, choice: AttentionKernel) -> Iterator[None]:
    """Let models inside make their masks as for a device that is not here."""
    with _scope(KernelScope(kind, choice, None, version)):
        yield


@contextmanager
def _scope(scope: KernelScope) -> Iterator[None]:
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def lone_kernels(device: torch.device) -> Sequence[AttentionKernel]:
    """Those of `scaled_dot_product_attention`, where there is a choice on a device; elsewhere its maker chooses."""
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


def flash_takes(use: AttentionUse, version: int) -> bool:
    """Whether CUDA's flash attention takes calls without a mask: half precision from sm80 on, heads of at most 256; on
    cards with less shared memory the backward pass of wide heads is left out (`check_flash_attention_hardware_support`,
    `check_head_dim_size_flash` and `check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120` of torch's
    sdp_utils.cpp).
    """
    takes = version >= AMPERE and use.dtype in (torch.float16, torch.bfloat16) and use.head_dim <= 256
    is_small = 86 <= version <= 89 or version >= 120
    if takes and is_small and use.is_trained:
        return use.head_dim <= 192 or (use.head_dim > 224 and not use.dropout)
    return takes


@functools.cache
def works_here(rehearse: Rehearsal, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a kernel computes what plain products do on this device: found out at its first use, and told in the log
    where it does not, so that a run goes on with others.
    """
    kernel, bound = rehearse.__name__.removeprefix("rehearse_"), 4e-2 if dtype == torch.bfloat16 else 1e-2
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            gap = rehearse(device, dtype, head_dim)
    except Exception as error:  # whatever Triton, a compiler or a driver says
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    else:
        if gap < bound:
            return True
        reason = f"its results are off by {gap:.1e}"
    log.warning("attention goes on without the kernel %s, which does not work here: %s", kernel, reason)
    return False
