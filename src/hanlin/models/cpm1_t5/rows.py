"""The T5's samples and prompts -> the tensors of a batch, which has two lengths: the encoder's and the decoder's.

A sample takes as many columns of a row as its longer side has; each side is then padded to the longest of the batch.
Samples of one row never see each other (spans), and positions begin at 0 in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Sample
from hanlin.models.rows import NO_SPAN

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]

# What the inputs of each side are called; tokens first.
SIDES = (("tokens", "positions", "spans"), ("encoder_tokens", "encoder_positions", "encoder_spans"))


def make_sample(inputs: Arrays, labels: np.ndarray, length: int) -> Sample:
    """length: columns that it takes of a row, at least those of its longer side; labels: of the decoder."""
    padded = np.full(length, IGNORED, np.int32)
    padded[: len(labels)] = labels
    return Sample(
        {name: ids.astype(np.int32) for name, ids in inputs.items()}, padded, (padded != IGNORED).astype(np.float32)
    )


def collate(rows: Sequence[Sequence[Sample]], length: int, pad: int) -> Batch:
    """Pack samples: tokens, positions and spans of both sides; labels and weights of the decoder."""
    import torch

    joined = [_row(row) for row in rows]
    assert all(len(row["encoder_tokens"]) <= length for row in joined), f"a row does not fit into {length}"
    labels = _stack([row["labels"] for row in joined], IGNORED)
    weights = _stack([row["weights"] for row in joined], 0).astype(np.float32)
    return Batch(stack(joined, pad), torch.from_numpy(labels), torch.from_numpy(weights))


def stack(rows: Sequence[Mapping[str, np.ndarray]], pad: int) -> dict[str, torch.Tensor]:
    """The inputs of rows, padded on the right."""
    import torch

    fillers = (pad, 0, NO_SPAN)
    named = {name: filler for side in SIDES for name, filler in zip(side, fillers, strict=True)}
    return {name: torch.from_numpy(_stack([row[name] for row in rows], filler)) for name, filler in named.items()}


def _row(row: Sequence[Sample]) -> Arrays:
    """The samples of a row end to end, on both sides."""
    parts, span = [], 0
    for sample in row:
        parts.append(_part(sample, span))
        span = 1 + max(int(parts[-1][names[2]].max(initial=span)) for names in SIDES)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(sample: Sample, first_span: int) -> Arrays:
    part = {}
    for tokens, positions, spans in SIDES:
        ids = part[tokens] = sample.inputs[tokens]
        part[positions] = sample.inputs.get(positions, np.arange(len(ids)))
        part[spans] = sample.inputs.get(spans, np.zeros(len(ids), np.int64)) + first_span
    count = len(part["tokens"])
    return {**part, "labels": sample.labels[:count], "weights": sample.weights[:count]}


def _stack(arrays: Sequence[np.ndarray], filler: int) -> np.ndarray:
    stacked = np.full((len(arrays), max(map(len, arrays))), filler, np.int64)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked
