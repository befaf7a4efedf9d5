"""CPM-2's samples and prompts -> the tensors of a batch, which has two lengths: the encoder's and the decoder's.

A sample takes as many columns of a row as its longer side has ids, so that neither side of a row is too long; each
side is then padded to the batch's longest only. Samples of one row never see each other (spans).
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


def make_sample(inputs: Arrays, labels: Sequence[int] | np.ndarray, weight: float) -> Sample:
    """inputs: of the decoder's length, but for the encoder's own; labels: of the decoder; weight: of each label."""
    columns = max(map(len, inputs.values()))
    padded = np.full(columns, IGNORED, dtype=np.int32)
    padded[: len(labels)] = labels
    return Sample(inputs, padded, np.where(padded == IGNORED, 0, weight).astype(np.float32))


def collate(rows: Sequence[Sequence[Sample]], length: int, pad: int) -> Batch:
    """Pack samples: tokens, encoder_tokens, their spans, lengths (ids of both sides), rivals where there are any."""
    import torch

    joined = [_row(row) for row in rows]
    assert all(len(row["encoder_tokens"]) <= length for row in joined), f"a row does not fit into {length}"
    fillers = {"tokens": pad, "encoder_tokens": pad, "spans": NO_SPAN, "encoder_spans": NO_SPAN, "rivals": NO_SPAN}
    present = [name for name in fillers if name in joined[0]]
    inputs = {name: stack([row[name] for row in joined], fillers[name]) for name in present}
    inputs["lengths"] = np.array([len(row["tokens"]) + len(row["encoder_tokens"]) for row in joined])
    labels = stack([row["labels"] for row in joined], IGNORED)
    weights = stack([row["weights"] for row in joined], 0).astype(np.float32)
    return Batch(tensors(inputs), torch.from_numpy(labels), torch.from_numpy(weights))


def stack(arrays: Sequence[np.ndarray], filler: int) -> np.ndarray:
    """Padded on the right to the longest: `[arrays, longest]`; whole numbers as int64."""
    kind = np.float64 if arrays[0].dtype.kind == "f" else np.int64
    stacked = np.full((len(arrays), max(map(len, arrays))), filler, dtype=kind)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _row(row: Sequence[Sample]) -> Arrays:
    """The samples of a row end to end, on both sides; numbers of spans and columns count from the row's beginning."""
    parts, columns, span = [], 0, 0
    for sample in row:
        part = _part(sample, span, columns)
        parts.append(part)
        columns += len(part["tokens"])
        span = int(part["encoder_spans"].max()) + 1
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(sample: Sample, span: int, columns: int) -> Arrays:
    inputs, count = sample.inputs, len(sample.inputs["tokens"])
    spans = {
        name: inputs.get(name, np.zeros(len(inputs[tokens]), dtype=np.int64)) + span
        for name, tokens in (("spans", "tokens"), ("encoder_spans", "encoder_tokens"))
    }
    part = {**inputs, **spans, "labels": sample.labels[:count], "weights": sample.weights[:count]}
    if "rivals" in inputs:
        part["rivals"] = np.where(inputs["rivals"] < 0, NO_SPAN, inputs["rivals"] + columns)
    return part
