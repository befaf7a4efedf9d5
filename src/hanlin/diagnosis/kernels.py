"""Which of torch's kernels compute attention on a device, with what arguments, and whether they compute it rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from hanlin.core.device import best_precision
from hanlin.diagnosis.finding import Finding
from hanlin.layers.attention_kernels import (
    AttentionKernel,
    AttentionUse,
    attention_kernels,
    kernel_scope,
    lone_kernel,
    lone_kernels,
    works_here,
)
from hanlin.layers.precision import DTYPES
from hanlin.layers.varlen import rehearse_varlen

__all__ = ["attention_findings"]

_GROUPS, _HEADS, _LENGTH, _HEAD_DIM = 2, 4, 64, 64
_BOUNDS = {"fp32": 5e-3, "bf16": 4e-2, "fp16": 1e-2}
"""Of the greatest difference, as a share of the greatest number; fp32 may be TF32."""


def attention_findings(device: torch.device) -> Iterator[Finding]:
    """Each kernel alone, and the choice of `run.attention: auto`: forward and backward, against the CPU."""
    precision = best_precision(device)
    kernels: list[AttentionKernel] = ["auto", *lone_kernels(device)]
    for kernel in kernels:
        told = {name: _try(device, precision, kernel, make) for name, make in _MASKS.items()}
        works = [name for name, state in told.items() if state == "works"]
        wrong = [f"{name}: {state}" for name, state in told.items() if state.startswith("wrong")]
        refused = [name for name, state in told.items() if state == "refused"]
        parts = [f"takes {', '.join(works)}" if works else "", f"not {', '.join(refused)}" if refused else "", *wrong]
        is_well = not wrong and not (kernel == "auto" and refused)
        yield Finding(
            f"{device} attention {kernel}", "; ".join(part for part in parts if part), is_well, {precision: told}
        )
    yield from _without_masks(device, precision)


def _without_masks(device: torch.device, precision: str) -> Iterator[Finding]:
    """Of samples one behind the other, where a device has a kernel for them."""
    use, scope = AttentionUse(DTYPES[precision], _HEAD_DIM, is_trained=True), kernel_scope(device)
    if replace(scope, device=None, planned_version=scope.version).takes_sequences(use):
        works = works_here(rehearse_varlen, device, use.dtype, use.head_dim)
        state = "works" if works else "does not work; runs go on with masks (the log says why)"
        yield Finding(f"{device} attention varlen", f"samples one behind the other: {state}", works, {precision: state})


def _mask(kind: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if kind == "bool":
        return torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).tril()[None, None].expand(_GROUPS, 1, -1, -1)
    return torch.randn(_GROUPS, _HEADS, _LENGTH, _LENGTH, generator=draw)


_MASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "no mask": dict,
    "causal": lambda: {"is_causal": True},
    "shared key heads": lambda: {"is_causal": True, "enable_gqa": True},
    "bool mask": lambda: {"attn_mask": _mask("bool")},
    "bias": lambda: {"attn_mask": _mask("bias")},
}


def _try(device: torch.device, precision: str, kernel: AttentionKernel, make: Callable[[], dict[str, Any]]) -> str:
    """works, refused, or what is wrong."""
    arguments, dtype = make(), DTYPES[precision]
    kv_heads = _HEADS // 2 if arguments.get("enable_gqa") else _HEADS
    draw = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(_GROUPS, heads, _LENGTH, _HEAD_DIM, generator=draw).to(dtype)
        for heads in (_HEADS, kv_heads, kv_heads)
    ]
    expected = _forward_backward([part.float() for part in parts], arguments)
    there = {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }
    try:
        with attention_kernels(device) if kernel == "auto" else lone_kernel(kernel):
            found = _forward_backward([part.to(device) for part in parts], there)
    except RuntimeError:
        return "refused"
    gaps = [
        float((one.float().cpu() - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    ]
    worst = max(gaps, key=lambda gap: gap if gap == gap else float("inf"))
    return "works" if worst < _BOUNDS[precision] else f"wrong by {worst:.1e}"


def _forward_backward(parts: list[torch.Tensor], arguments: dict[str, Any]) -> list[torch.Tensor]:
    """The result, and the gradients of query, key and value."""
    parts = [part.detach().requires_grad_() for part in parts]
    query, key, value = parts
    mixed = functional.scaled_dot_product_attention(query, key, value, **arguments)
    mixed.float().square().sum().backward()
    gradients = [part.grad for part in parts]
    return [mixed.detach(), *(gradient for gradient in gradients if gradient is not None)]
