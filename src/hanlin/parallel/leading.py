"""A divided model that one rank calls: it tells the others of each call, and they compute their part of it.

Who is answered, what is drawn and what is remembered is known to the main rank alone (`generate/`, `serve/`); what the
others hold of the KV cache follows it. A rank that fails ends all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hanlin.core.collectives import broadcast_value, new_cpu_group
from hanlin.core.errors import RankError
from hanlin.core.transfer import on_host, to_device
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.slot_cache import SlotCache, SlotView, ViewOfSlots
from hanlin.parallel.inference_model import ShardedInferenceModel

__all__ = ["follow", "leading"]

_SILENCE = timedelta(days=365)
"""So long nobody may ask anything. A rank that ends meanwhile closes its connections, which is noticed at once."""

_LOST = "the ranks that hold the model together have lost each other"


@dataclass(frozen=True)
class _Call:
    """A call of the model. inputs: tensors on the CPU, and settings; cache: the number of the KV cache that it reads
    and writes, None: none; view: of its slots, None: it is a plain one; alive: the caches that are still used.
    """

    inputs: dict[str, Any]
    cache: int | None
    view: ViewOfSlots | None
    alive: set[int]


@contextmanager
def leading(model: nn.Module, on_failure: Callable[[], None] = lambda: None) -> Iterator[None]:
    """On the main rank: the others compute each call of the model with it, until this block is left.

    model: a divided one (`ShardedInferenceModel`).
    on_failure: what is to be done at once, in whichever thread called the model, when a call fails: the ranks may not
    be in step any more, so the block should be left; then that error is raised.
    """
    assert isinstance(model, ShardedInferenceModel), "a process alone holds the model"
    leader = _Leader(new_cpu_group(timeout=_SILENCE), on_failure)
    model.around_calls = leader.call
    try:
        yield
    finally:
        model.around_calls = None
        if leader.failure is not None:
            raise leader.failure
        broadcast_value(None, leader.group)


def follow(model: nn.Module, arithmetic: Callable[[], AbstractContextManager[None]]) -> None:
    """On the other ranks: compute what the main one calls, until it is done.

    arithmetic: what a call stands within (`Engine.inference`).
    """
    assert isinstance(model, ShardedInferenceModel), "a process alone holds the model"
    group = new_cpu_group(timeout=_SILENCE)
    caches: dict[int, KVCache | SlotCache] = {}
    while (told := cast("_Call | None", broadcast_value(None, group))) is not None:
        inputs = _on_device(told.inputs, model.mesh.device)
        caches = {number: cache for number, cache in caches.items() if number in told.alive}
        with arithmetic():
            if told.cache is not None:
                cache = caches.setdefault(told.cache, KVCache() if told.view is None else SlotCache())
                inputs["kv_cache"] = cache if told.view is None else cast("SlotCache", cache).follow(told.view)
            model(**inputs)


class _Leader:
    def __init__(self, group: Any, on_failure: Callable[[], None]) -> None:
        self.group, self.failure = group, None
        self._on_failure = on_failure
        self._numbers = count()
        self._caches: WeakKeyDictionary[KVCache | SlotCache, int] = WeakKeyDictionary()

    def call(self, compute: Callable[..., torch.Tensor], inputs: dict[str, Any]) -> torch.Tensor:
        """Tell the others, and compute the own part.

        Raises: RankError where this goes wrong; nothing is told after that.
        """
        if self.failure is not None:
            raise RankError(_LOST)
        try:
            broadcast_value(self._told(inputs), self.group)
            return compute(**inputs)
        except BaseException as error:
            self.failure = error
            self._on_failure()
            raise RankError(_LOST) from error

    def _told(self, inputs: dict[str, Any]) -> _Call:
        given = {name: on_host(one) if isinstance(one, torch.Tensor) else one for name, one in inputs.items()}
        cache: Any = given.pop("kv_cache", None)
        view = None
        if isinstance(cache, SlotView):
            cache, view = cache.cache, cache.described()
        number = None if cache is None else self._caches.setdefault(cache, next(self._numbers))
        return _Call(given, number, view, set(self._caches.values()))


def _on_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    tensors = {name: one for name, one in inputs.items() if isinstance(one, torch.Tensor)}
    return inputs | to_device(tensors, device)
