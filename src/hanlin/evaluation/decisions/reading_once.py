"""Options that begin alike: what they share is read once, by models whose positions never see a later one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hanlin.core.batch import IGNORED, Sample
from hanlin.generate.engine import Engine
from hanlin.generate.sampling import check_numbers
from hanlin.layers.kv_cache import KVCache

__all__ = ["is_read_once", "likelihoods_read_once"]

_WORTH = 256
"""Positions that are not read again, below which calls of their own cost as much."""


def is_read_once(engine: Engine, samples: Sequence[Sample]) -> bool:
    """Whether so much of some samples is alike that it is worth reading it by itself."""
    if not engine.is_causal or engine.mesh.size("all") > 1:
        return False
    return (len(samples) - 1) * _shared_positions(samples) >= _WORTH


def likelihoods_read_once(
    engine: Engine, samples: Sequence[Sample], batch_size: int, most_positions: int | None
) -> Iterator[list[float]]:
    """One call of the model a step; the last one yields the mean log likelihood of each sample's learned tokens, the
    others nothing.
    """
    shared, longest = _shared_positions(samples), max(sample.length for sample in samples)
    batch = engine.processor.collate([[sample] for sample in samples], longest).to(engine.device)
    cache, most = KVCache(), most_positions or longest * batch_size
    for start in range(0, shared, most):
        part = slice(start, min(start + most, shared))
        with engine.inference():
            engine.model(
                **{name: one[:1, part] for name, one in batch.inputs.items()}, kv_cache=cache, logits_to_keep=1
            )
        yield []
    labels, weights = batch.labels[:, shared:], batch.weights[:, shared:]
    rows, found = max(1, min(batch_size, most // (longest - shared))), []
    for first in range(0, len(samples), rows):
        some = slice(first, first + rows)
        rest = {name: one[some, shared:] for name, one in batch.inputs.items()}
        with engine.inference():
            losses = engine.model(**rest, labels=labels[some], reduction="none", kv_cache=cache.cut())
        tokens = (weights[some] * (labels[some] != IGNORED)).sum(-1)
        found += (-check_numbers((losses * weights[some]).sum(-1)) / tokens).tolist()
        yield found if len(found) == len(samples) else []


def _shared_positions(samples: Sequence[Sample]) -> int:
    """With which all begin, none of which is learned; one position at least is left."""
    first, length = samples[0], min(sample.length for sample in samples) - 1
    for sample in samples:
        differs = sample.labels[:length] != IGNORED
        for name, values in sample.inputs.items():
            if values.ndim != 1 or len(values) != sample.length or name not in first.inputs:
                return 0  # of the whole sample
            differs = differs | (values[:length] != first.inputs[name][:length])
        length = int(np.argmax(differs)) if differs.any() else length
    return max(length, 0)
