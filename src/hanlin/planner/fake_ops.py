"""What takes the place of modules and functions that cannot run without values, or not as an accelerator runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hanlin.core.cards import Device
from hanlin.layers.attention import for_each_query_head
from hanlin.layers.attention_kernels import AttentionKernel, planned_kernels
from hanlin.layers.experts import Experts
from hanlin.layers.flex import PairScores, pair_attention
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.quantised import computed_again
from hanlin.layers.varlen import Sequences, varlen_attention
from hanlin.planner.kernels import AttentionCall, kernel_of
from hanlin.planner.memory_tracker import tensor_bytes
from hanlin.planner.work import WorkCounter, moved_bytes


class DeviceAttention(TorchFunctionMode):
    """Takes the place of torch's attention: what it keeps is what the kernels of a device keep; None: the CPU's own.

    calls: what was asked of it, and which kernel takes it; bias_bytes: of the gradient of the largest trained bias.
    """

    def __init__(self, counter: WorkCounter, device: Device | None, choice: AttentionKernel) -> None:
        super().__init__()
        self.counter, self.device = counter, device
        self.choice: AttentionKernel = choice
        self.calls: dict[AttentionCall, AttentionKernel] = {}
        self.bias_bytes = 0

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Masks are made as for the device, and attention is computed by its kernels."""
        device = self.device
        with nullcontext() if device is None else planned_kernels(device.kind, device.version, self.choice), self:
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is varlen_attention:
            return self._sequences(*args, **kwargs)
        if func is pair_attention:
            return self._pairs(*args, **kwargs)
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        dtype, mask = matmul_dtype(args[0]), kwargs.get("attn_mask")
        if mask is not None and mask.requires_grad:
            self.bias_bytes = max(self.bias_bytes, tensor_bytes(mask))
        if self.device is None:
            return func(*args, **kwargs)
        parts = [part.to(dtype) for part in args[:3]]
        call = AttentionCall.of(parts[0], parts[1], mask, kwargs, self.device)
        kernel = kernel_of(call, self.device, self.choice)
        if kwargs.get("enable_gqa") and kernel in ("efficient", "math"):
            # As layers/attention.py does it where no kernel takes shared keys.
            repeats = parts[0].shape[-3] // parts[1].shape[-3]
            parts[1:] = [for_each_query_head(part, repeats) for part in parts[1:]]
            args, kwargs = tuple(parts), {**kwargs, "enable_gqa": False}
            call = AttentionCall.of(parts[0], parts[1], mask, kwargs, self.device)
            kernel = kernel_of(call, self.device, self.choice)
        self.calls[call] = kernel
        if kernel == "math":
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        # Two products of [queries, keys], each of 2 FLOP, half of them where nobody looks ahead.
        flops = 4 * parts[0].numel() * parts[1].shape[-2] // (1 + call.is_causal)
        return _Kernel.apply(*parts, mask, (flops, functools.partial(self.counter.note, kernel)))

    def _pairs(self, *parts: torch.Tensor, scores: PairScores, scale: float | None = None) -> torch.Tensor:
        del scale
        query, key, value = (part.to(matmul_dtype(part)) for part in parts)
        call = AttentionCall(query.dtype, query.shape[-1], scores.table.dtype)
        self.calls[call] = "flex"
        work = (4 * query.numel() * key.shape[-2], functools.partial(self.counter.note, "flex"))
        return _Kernel.apply(query, key, value, None, work)

    def _sequences(self, *parts: torch.Tensor, sequences: Sequences, scale: float | None = None) -> torch.Tensor:
        del scale
        query, key, value = (part.to(matmul_dtype(part)) for part in parts)
        is_square = sequences.most_queries == sequences.most_keys
        is_grouped = query.shape[-2] != key.shape[-2]
        call = AttentionCall(query.dtype, query.shape[-1], None, True, is_grouped, is_square)
        self.calls[call] = "varlen"
        seen = sequences.most_keys - sequences.most_queries // 2  # a query sees on average
        work = (4 * query.numel() * seen, functools.partial(self.counter.note, "varlen"))
        return _Kernel.apply(query, key, value, None, work)


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Any, key: Any, value: Any, mask: Any, work: tuple[int, Callable[[int, int], None]]
    ) -> torch.Tensor:
        flops, note = work
        mixed = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32)
        size = sum(moved_bytes(one) for one in (query, key, value, mixed, mask) if one is not None)
        note(flops, size)
        ctx.note = functools.partial(note, flops * 5 // 2, size * 5 // 2)  # backwards there are five such products
        ctx.save_for_backward(query, key, value, mixed, sums, *(() if mask is None else (mask,)))
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, _, *mask = ctx.saved_tensors
        ctx.note()
        parts = (query, key, value, mask[0] if mask else None)
        wanted = zip(parts, ctx.needs_input_grad[:4], strict=True)
        made = (torch.empty_like(part) if part is not None and needed else None for part, needed in wanted)
        return (*made, None)


class EvenExperts(nn.Module):
    """One rank's experts with equally many tokens each; the ranks' tokens together are as many as its own."""

    def __init__(self, whole: Experts, count: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(list(whole.experts.values())[:count])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, -2)
        order = torch.zeros(len(flat), dtype=torch.int64)
        parts = order.chunk(len(self.experts))
        with computed_again(False):
            pieces = [expert(flat[own]) for expert, own in zip(self.experts, parts, strict=False)]
        return torch.cat(pieces)[order].view_as(hidden)
