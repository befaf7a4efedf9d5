"""Options that are asked about alike: what they share is read once, by models whose positions never see a later one
what they begin with, by encoder-decoders what the encoder reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hanlin.core.batch import IGNORED, Sample
from hanlin.generate.engine import Engine
from hanlin.generate.sampling import check_numbers
from hanlin.layers.kv_cache import KVCache

__all__ = ["is_read_once", "likelihoods_read_once"]

_ENCODER = "encoder_"
"""Begins the names of what an encoder reads."""
_WORTH = 256
"""Positions that are not read again, below which calls of their own cost as much."""


def is_read_once(engine: Engine, samples: Sequence[Sample]) -> bool:
    """Whether so much of some samples is alike that it is worth reading it by itself."""
    if engine.mesh.size("all") > 1:
        return False
    if engine.is_causal:
        shared = _shared_positions(samples)
    else:
        shared = _encoded_positions(samples) if getattr(engine.model, "encodes_once", False) else 0
    return (len(samples) - 1) * shared >= _WORTH


def likelihoods_read_once(
    engine: Engine, samples: Sequence[Sample], batch_size: int, most_positions: int | None
) -> Iterator[list[float]]:
    """One call of the model a step; the last one yields the mean log likelihood of each sample's learned tokens, the
    others nothing.
    """
    shared, longest = _shared_positions(samples) if engine.is_causal else 0, max(sample.length for sample in samples)
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
    encoded = _encoded_positions(samples)
    rows, found = max(1, min(batch_size, (most - encoded) // labels.shape[1])), []
    for first in range(0, len(samples), rows):
        some = slice(first, first + rows)
        rest = {name: _part(name, one, some, shared) for name, one in batch.inputs.items()}
        with engine.inference():
            behind = cache.cut() if shared else None
            losses = engine.model(**rest, labels=labels[some], reduction="none", kv_cache=behind)
        tokens = (weights[some] * (labels[some] != IGNORED)).sum(-1)
        found += (-check_numbers((losses * weights[some]).sum(-1)) / tokens).tolist()
        yield found if len(found) == len(samples) else []


def _part(name: str, values: torch.Tensor, rows: slice, start: int) -> torch.Tensor:
    """Of some rows the positions from `start` on; of what an encoder reads a single row."""
    if name.startswith(_ENCODER):
        return values[:1]
    return values[rows] if values.ndim == 1 else values[rows, start:]


def _encoded_positions(samples: Sequence[Sample]) -> int:
    """That an encoder reads, the same for all; 0 where they differ, or there is none."""
    read = [{name: values for name, values in sample.inputs.items() if name.startswith(_ENCODER)} for sample in samples]
    is_alike = all(
        name in one and np.array_equal(values, one[name]) for one in read for name, values in read[0].items()
    )
    return max((len(values) for values in read[0].values()), default=0) if is_alike else 0


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
