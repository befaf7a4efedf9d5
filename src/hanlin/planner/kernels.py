"""Which kernel computes an attention on a device, told from the arguments of the call as torch's dispatcher does.

CUDA: the filters of `sdp_utils.cpp` of torch 2.11 to 2.13, of those that our calls can meet. Flash takes half precision
from sm80 on, heads of at most 256, no mask; it is called varlen where it computes samples one behind the other, which
the model itself decides when it makes its masks (layers/attention_kernels.py). Efficient takes masks and fp32, but no
grouped heads (`enable_gqa`), and heads whose size suits its products. What no kernel takes is computed by plain
products (math), which hold the scores and the probabilities of all heads in fp32.

Ascend: torch_npu's attention is fused from the A2 on, in half precision, for calls without a mask or with a boolean
one; a bias that is added, fp32 and the 910A get plain products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from hanlin.core.cards import Device
from hanlin.core.device import AMPERE
from hanlin.layers.attention_kernels import ALLOWED_KERNELS, AttentionKernel, AttentionUse, flash_takes

__all__ = ["AttentionCall", "kernel_of", "why_not_flash"]

_NAMES: dict[SDPBackend, AttentionKernel] = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.MATH: "math",
}


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of `scaled_dot_product_attention` by which a kernel is chosen.

    mask: its dtype, None where there is none; is_grouped: several query heads share one of keys; is_square: as many
    queries as keys; is_trained: whether a gradient is wanted.
    """

    dtype: torch.dtype
    head_dim: int
    mask: torch.dtype | None = None
    is_causal: bool = False
    is_grouped: bool = False
    is_square: bool = True
    dropout: float = 0.0
    is_trained: bool = True

    @staticmethod
    def of(query: Any, key: Any, mask: Any, options: dict[str, Any], device: Device) -> AttentionCall:
        # Masks stay boolean on an NPU alone (layers/attention.py); a bias has other numbers for each head.
        is_mask = mask is not None and device.kind == "npu" and mask.dim() == 4 and mask.shape[1] == 1
        return AttentionCall(
            query.dtype,
            query.shape[-1],
            None if mask is None else torch.bool if is_mask else mask.dtype,
            bool(options.get("is_causal")),
            query.shape[-3] != key.shape[-3],
            query.shape[-2] == key.shape[-2],
            float(options.get("dropout_p", 0.0)),
            torch.is_grad_enabled() and any(part.requires_grad for part in (query, key)),
        )

    @property
    def is_half(self) -> bool:
        return self.dtype in (torch.float16, torch.bfloat16)


def kernel_of(call: AttentionCall, device: Device, choice: AttentionKernel = "auto") -> AttentionKernel:
    """choice: `run.attention`."""
    if device.kind == "npu":
        is_fused = device.has_flash and call.is_half and call.mask in (None, torch.bool) and choice != "math"
        return "flash" if is_fused else "math"
    takes = {"flash": _flash_takes, "efficient": _efficient_takes, "cudnn": _cudnn_takes}
    tried: list[AttentionKernel] = [_NAMES[kernel] for kernel in ALLOWED_KERNELS[choice]]
    return next(name for name in tried if name == "math" or takes[name](call, device))


def why_not_flash(call: AttentionCall, kernel: AttentionKernel, device: Device) -> str:
    """What keeps a call from the fastest kernel, in words; empty: nothing."""
    if kernel in ("varlen", "flash"):
        return ""
    reasons = [
        "it has no flash attention" if not device.has_flash else "",
        "fp32" if not call.is_half else "",
        "" if call.mask is None else "a mask" if call.mask == torch.bool else "a mask or a bias",
        "query heads share keys" if kernel == "math" and call.is_grouped else "",
        f"heads of {call.head_dim}" if call.head_dim > 256 else "",
    ]
    return ", ".join(filter(None, reasons)) or "run.attention"


def _flash_takes(call: AttentionCall, device: Device) -> bool:
    use = AttentionUse(call.dtype, call.head_dim, call.dropout, call.is_trained)
    return call.mask is None and (call.is_square or not call.is_causal) and flash_takes(use, device.version)


def _efficient_takes(call: AttentionCall, device: Device) -> bool:
    alignment = (8 if call.is_half else 4) if device.version >= AMPERE else (8 if call.is_half else 1)
    has_dtype = call.dtype in (torch.float16, torch.float32) or (call.dtype == torch.bfloat16 and device.has_bf16)
    return has_dtype and not call.is_grouped and call.head_dim % alignment == 0


def _cudnn_takes(call: AttentionCall, device: Device) -> bool:
    is_fitting = call.head_dim <= 128 and call.head_dim % 8 == 0 and (call.dropout * 16).is_integer()
    return device.version >= AMPERE and call.is_half and is_fitting
