"""Samples of encoder-decoders -> the tensors of a batch, which has two lengths: the encoder's and the decoder's.

A sample takes as many positions of a row as its longer side has ids, so that neither side of a row is too long; each
side is then padded to the longest of the batch only. Samples of one row never see each other (spans), and positions
begin at 0 in each; a sample may bring its own, and spans inside of it, numbered from 0. What belongs to the encoder is
called encoder_tokens, encoder_positions, encoder_spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.batch import IGNORED, NO_SPAN, Batch, Sample

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
SIDES = "", "encoder_"


def make_sample(
    inputs: Arrays, labels: Sequence[int] | np.ndarray, *, weight: float = 1.0, length: int | None = None
) -> Sample:
    """labels: of the decoder; weight: of each label; length: positions that it takes of a row, None: those it needs."""
    padded = np.full(length or max(map(len, inputs.values())), IGNORED, np.int32)
    padded[: len(labels)] = labels
    given = {name: ids.astype(np.int32) for name, ids in inputs.items()}
    return Sample(given, padded, np.where(padded == IGNORED, 0, weight).astype(np.float32))


def collate(rows: Sequence[Sequence[Sample]], length: int, fillers: Mapping[str, int]) -> Batch:
    """Pack samples; labels and weights are the decoder's.

    fillers: what stands in the padding of each of the model's inputs; those that no sample has are left out.
    """
    import torch

    joined = [_row(row) for row in rows]
    assert all(len(row["encoder_tokens"]) <= length for row in joined), f"a row does not fit into {length}"
    labels, weights = (
        _stack([row[name] for row in joined], gap) for name, gap in (("labels", IGNORED), ("weights", 0))
    )
    return Batch(pad_right(joined, fillers), torch.from_numpy(labels), torch.from_numpy(weights))


def pad_right(rows: Sequence[Arrays], fillers: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The inputs that `fillers` names, each `[rows, longest]`; of rows that all have the same."""
    import torch

    present = [name for name in fillers if name in rows[0]]
    return {name: torch.from_numpy(_stack([row[name] for row in rows], fillers[name])) for name in present}


def _row(row: Sequence[Sample]) -> dict[str, np.ndarray]:
    """The samples of a row end to end, on both sides; numbers of spans and positions count from the row's beginning."""
    parts, position, span = [], 0, 0
    for sample in row:
        parts.append(_part(sample, position, span))
        position += len(parts[-1]["tokens"])
        span = 1 + max(int(parts[-1][f"{side}spans"].max(initial=span)) for side in SIDES)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(sample: Sample, first_column: int, first_span: int) -> dict[str, np.ndarray]:
    part = dict(sample.inputs)
    for side in SIDES:
        size = len(part[f"{side}tokens"])
        part[f"{side}positions"] = sample.inputs.get(f"{side}positions", np.arange(size))
        part[f"{side}spans"] = sample.inputs.get(f"{side}spans", np.zeros(size, np.int64)) + first_span
    if "negatives" in part:  # positions
        part["negatives"] = np.where(part["negatives"] < 0, NO_SPAN, part["negatives"] + first_column)
    size = len(part["tokens"])
    return {**part, "labels": sample.labels[:size], "weights": sample.weights[:size]}


def _stack(arrays: Sequence[np.ndarray], filler: int) -> np.ndarray:
    """Padded on the right to the longest: `[arrays, longest]`; whole numbers as int64."""
    kind = np.float32 if arrays[0].dtype.kind == "f" else np.int64
    stacked = np.full((len(arrays), max(map(len, arrays))), filler, kind)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked
