"""Counts the bytes of tensors as they come to life and are freed; of real tensors and of fake ones alike."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default)


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of the storages that tensor operations make while it is active, until they are freed.

    casted: of them, copies of `weights` in another dtype; others: tensors that are not counted either.
    """

    def __init__(self, weights: Sequence[torch.Tensor] = (), others: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = self.casted = self.products = 0
        self._weights = frozenset(map(_key, weights))
        self._known = {*self._weights, *map(_key, others)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = self.is_cast(func, args)
        if func in _PRODUCTS:
            self.products += tensor_bytes(tree_leaves(result)[0])
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in self._known:
                self._record(tensor.untyped_storage(), is_copy)
        return result

    def is_cast(self, func: Any, args: Any) -> bool:
        """Whether an operation copies a weight in another dtype."""
        return func is _ATEN._to_copy.default and _key(args[0]) in self._weights

    def _record(self, storage: torch.UntypedStorage, is_copy: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.casted += size * is_copy
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size, size * is_copy)

    def _forget(self, key: int, size: int, casted: int) -> None:
        self._known.discard(key)
        self.live -= size
        self.casted -= casted


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
