"""How many positions of the KV cache there is memory for, once the weights are there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hanlin.core.device import free_memory_bytes
from hanlin.generate.engine import Engine
from hanlin.layers.slot_cache import Budget, SlotCache, SlotView
from hanlin.parallel.inference_model import ShardedInferenceModel
from hanlin.planner.trace import TraceSettings, make_inputs

__all__ = ["CacheRoom", "free_room", "position_bytes"]

_SHARE = 0.75
"""Of the free memory. The rest is for what a step computes with, and for slots that are of no use to others."""


@dataclass(frozen=True)
class CacheRoom:
    """positions: that fit; free_bytes: of the device that has least."""

    positions: int
    free_bytes: int


def free_room(engine: Engine) -> CacheRoom | None:
    """None: a device does not tell what is free. Every rank must call it, before it leads or follows."""
    free = free_memory_bytes(engine.device)
    if engine.mesh.maximum("all", float(free is None)):
        return None
    assert free is not None
    positions = int(free * _SHARE) // position_bytes(engine)
    [[least, least_free]] = engine.mesh.exchange(("all", "max", [-positions, -free]))
    return CacheRoom(-int(least), -int(least_free))


def position_bytes(engine: Engine) -> int:
    """What the cache takes for a position on this rank: seen from a slot that the model has written to. Every rank must
    call it.
    """
    model = engine.model
    shown = model.stages[0] if isinstance(model, ShardedInferenceModel) else model
    inputs = make_inputs(shown, 1, TraceSettings(1, 1, torch.float32), ("positions",))
    width = SlotCache().width_for(1)
    encoder_width = width if any(name.startswith("encoder_") for name in inputs) else 0
    cache = SlotCache(Budget(width + encoder_width))
    slots = cache.take(1, width, encoder_width)
    assert slots is not None
    with engine.inference():
        there = {name: tensor.to(engine.device) for name, tensor in inputs.items()}
        model(**there, kv_cache=SlotView(cache, slots), logits_to_keep=1)
    return max(1, -(-cache.bytes // cache.positions))
