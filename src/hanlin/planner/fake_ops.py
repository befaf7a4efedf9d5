"""What takes the place of modules and functions that cannot run without values, or not as an accelerator runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hanlin.layers.experts import Experts
from hanlin.layers.precision import matmul_dtype


class FusedAttention(TorchFunctionMode):
    """Takes the place of torch's attention: what it keeps is what the kernels of accelerators keep."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        dtype = matmul_dtype(args[0])
        return _Kernel.apply(*(part.to(dtype) for part in args[:3]), kwargs.get("attn_mask"), self)


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, mode: FusedAttention) -> torch.Tensor:
        # Two products of [queries, keys], each of 2 FLOP; the backward pass has five such.
        ctx.mode, ctx.flops = mode, 4 * query.numel() * key.shape[-2]
        mode.flops += ctx.flops
        mixed = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mixed, sums, *(() if mask is None else (mask,)))
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, _, *mask = ctx.saved_tensors
        ctx.mode.flops += ctx.flops * 5 // 2
        parts = (query, key, value, mask[0] if mask else None)
        wanted = zip(parts, ctx.needs_input_grad[:4], strict=True)
        return (*(torch.empty_like(part) if part is not None and needed else None for part, needed in wanted), None)


class EvenExperts(nn.Module):
    """One rank's experts with equally many tokens each; the ranks' tokens together are as many as its own."""

    def __init__(self, whole: Experts, count: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(list(whole.experts.values())[:count])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, -2)
        order = torch.zeros(len(flat), dtype=torch.int64)
        parts = order.chunk(len(self.experts))
        pieces = [expert(flat[own]) for expert, own in zip(self.experts, parts, strict=False)]
        return torch.cat(pieces)[order].view_as(hidden)
