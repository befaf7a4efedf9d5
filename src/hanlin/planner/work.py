"""What a pass computes and moves, operation by operation, and how long a device takes for it: a roofline.

Each operation takes as long as its arithmetic or its traffic with the device's memory, whichever is longer, at the
shares of the peaks below; all of them take at least as long as Python needs to start them. The shares are assumptions,
of what torch's kernels reach with the matrices of such models on large GPUs; nothing here was measured on a device.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hanlin.core.cards import Device
from hanlin.planner.memory_tracker import MemoryTracker

PRODUCT_SHARE = 0.7
"""Of the peak FLOP/s, reached by products of large matrices."""
ATTENTION_SHARES = {"varlen": 0.45, "flash": 0.45, "cudnn": 0.5, "efficient": 0.25, "flex": 0.25}
"""Of the same, by fused attention, forwards and backwards together; `math` is counted as the products that it is."""
BANDWIDTH_SHARE = 0.8
"""Of the memory's bandwidth."""
START_SECONDS = 6e-6
"""Of the CPU for each operation, dispatch and autograd included."""

Work = Mapping[tuple[str, int, int], int]
"""(kind, FLOP, bytes read and written) of an operation -> how often. Kinds: product, product_fp32, the names of
attention kernels, cast (of a weight to the dtype of the arithmetic) and other."""

_ATEN = torch.ops.aten
_LOOKUPS = {_ATEN.embedding, _ATEN.index_select, _ATEN.index, _ATEN.gather}
"""They read as much of a table as they write, not all of it."""
_NOTHING = {_ATEN.empty, _ATEN.empty_like, _ATEN.new_empty, _ATEN.empty_strided, _ATEN.new_empty_strided}


class WorkCounter(MemoryTracker):
    """Counts what operations on fake tensors compute and move, besides what they hold; by section, which whoever runs
    them names.
    """

    def __init__(self, weights: Sequence[torch.Tensor] = (), others: Sequence[torch.Tensor] = ()) -> None:
        super().__init__(weights, others)
        self.section = ""
        self.work: dict[str, Counter[tuple[str, int, int]]] = defaultdict(Counter)
        self._kinds: dict[Any, tuple[bool, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # most of all calls; the long way it takes a third of the time
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func not in self._kinds:
            packet = func.overloadpacket
            is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
            self._kinds[func] = is_view or packet in _NOTHING, flop_registry.get(packet)
        is_idle, formula = self._kinds[func]
        if not is_idle:
            self._note(func, formula, args, kwargs or {}, result)
        return result

    def note(self, kind: str, flops: int, size: int) -> None:
        self.work[self.section][kind, flops, size] += 1

    def _note(self, func: Any, formula: Any, args: Any, kwargs: Any, result: Any) -> None:
        written = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        if not written:
            return
        out = sum(map(moved_bytes, written))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        size = 2 * out if func.overloadpacket in _LOOKUPS else out + sum(map(moved_bytes, given))
        if formula is not None:
            kind = "product_fp32" if written[0].dtype == torch.float32 else "product"
            self.note(kind, formula(*args, **kwargs, out_val=result), size)
        else:
            self.note("cast" if self.is_cast(func, args) else "other", 0, size)


def moved_bytes(tensor: torch.Tensor) -> int:
    """What a pass over it moves: of an expanded one, what there is of it."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def total_flops(work: Work) -> int:
    return sum(flops * count for (_, flops, _), count in work.items())


@dataclass(frozen=True)
class Seconds:
    """Of a device: products of matrices, attention, and what is bound by its memory; casts: of these, of weights;
    starts: the CPU's, for all operations.
    """

    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    casts: float = 0.0
    starts: float = 0.0

    @property
    def total(self) -> float:
        return max(self.products + self.attention + self.memory, self.starts)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(  # field by field: a search adds some hundred thousand
            self.products + other.products,
            self.attention + other.attention,
            self.memory + other.memory,
            self.casts + other.casts,
            self.starts + other.starts,
        )

    def times(self, factors: Seconds) -> Seconds:
        """Part by part."""
        return Seconds(*(getattr(self, one.name) * getattr(factors, one.name) for one in fields(self)))


def seconds_on(work: Work, device: Device) -> Seconds:
    found = dict.fromkeys(("products", "attention", "memory", "casts"), 0.0)
    bandwidth = device.bandwidth * BANDWIDTH_SHARE
    for (kind, flops, size), count in work.items():
        if kind in ATTENTION_SHARES:
            found["attention"] += count * max(flops / (device.flops * ATTENTION_SHARES[kind]), size / bandwidth)
        elif kind in ("product", "product_fp32"):
            peak = device.peak("fp32" if kind == "product_fp32" else "fp16")
            found["products"] += count * max(flops / (peak * PRODUCT_SHARE), size / bandwidth)
        else:
            found["memory"] += count * size / bandwidth
            found["casts"] += count * size / bandwidth * (kind == "cast")
    return Seconds(**found, starts=START_SECONDS * sum(work.values()))
