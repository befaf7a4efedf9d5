"""Gradients of weights that several ranks hold whole, added bucket by bucket, also while the backward pass goes on.

A bucket sets out when all its gradients are there and the ones before it have set out, so that all ranks send the same
in the same order. Which weight lies in which bucket, and where, follows from the list of weights alone: a sum of many
ranks is rounded by its place, and a run that is gone on with must round as before.
torch's DistributedDataParallel does alike, but it arranges its buckets anew after its first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import distributed, nn
from torch.utils.hooks import RemovableHandle

from hanlin.parallel.mesh import local

BUCKET_BYTES = 25 << 20
"""As of torch's DistributedDataParallel: large enough for the network, small enough to set out early."""

_ALIGNMENT = 16
"""Bytes; kernels that go over many tensors are slow where one begins elsewhere."""


class Buckets:
    """weights: in the order of the forward pass; the last ones get their gradients first."""

    def __init__(self, weights: Sequence[nn.Parameter], group: distributed.ProcessGroup) -> None:
        self._group = group
        self._buckets = _filled(list(reversed(weights)))
        self._hooks: list[RemovableHandle] = []
        self._missing: list[set[nn.Parameter]] = []
        self._begin()

    def expect_last(self) -> None:
        """The next backward pass brings what is not there yet: buckets set out while it goes on."""
        for number, bucket in enumerate(self._buckets):
            for weight in bucket:
                self._hooks.append(weight.register_post_accumulate_grad_hook(self._arrival(number)))

    @torch.no_grad()
    def finish(self) -> None:
        """Add what has not set out, and wait for all. Weights without a gradient here have zeros then."""
        for hook in self._hooks:
            hook.remove()
        for bucket in self._buckets[self._sent :]:
            self._send(bucket)
        for handle in self._handles:
            handle.wait()
        self._begin()

    def _begin(self) -> None:
        self._hooks.clear()
        self._missing = [set(bucket) for bucket in self._buckets]
        self._sent = 0
        self._handles: list[distributed.Work] = []

    def _arrival(self, number: int) -> Callable[[torch.Tensor], None]:
        @torch.no_grad()
        def note(weight: nn.Parameter) -> None:
            assert weight in self._missing[number], "a gradient came twice in one pass"
            self._missing[number].remove(weight)
            while self._sent < len(self._buckets) and not self._missing[self._sent]:
                self._send(self._buckets[self._sent])
                self._sent += 1

        return note  # pyright: ignore[reportReturnType]  # torch says that it gives a tensor

    def _send(self, bucket: Sequence[nn.Parameter]) -> None:
        for weight in bucket:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        handle = distributed.all_reduce(_joined(bucket), group=self._group, async_op=True)
        assert handle is not None
        self._handles.append(handle)


def _filled(weights: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for weight in weights:
        size = local(weight).nbytes
        if not buckets or size > room or not _goes_with(weight, buckets[-1][0]):
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(weight)
        room -= size
    return buckets


def _goes_with(weight: nn.Parameter, other: nn.Parameter) -> bool:
    """Whether their gradients may be views of the same memory: those of DTensors may not."""
    return local(weight) is weight and local(other) is other and weight.dtype == other.dtype


def _joined(bucket: Sequence[nn.Parameter]) -> torch.Tensor:
    """The gradients of a bucket as one tensor, of which they are views from now on."""
    grads = [local(weight.grad) for weight in bucket if weight.grad is not None]
    if len(grads) == 1:
        return grads[0]
    unit = max(_ALIGNMENT // grads[0].element_size(), 1)
    sizes = [math.ceil(grad.numel() / unit) * unit for grad in grads]
    whole = torch.zeros(sum(sizes), dtype=grads[0].dtype, device=grads[0].device)
    parts = [part[: grad.numel()].view(grad.shape) for part, grad in zip(whole.split(sizes), grads, strict=True)]
    for weight, part, grad in zip(bucket, parts, grads, strict=True):
        weight.grad = part.copy_(grad)
    return whole
