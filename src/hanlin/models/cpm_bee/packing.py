"""Packed CPM-Bee samples -> the tensors of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Sample

from .prompts import Entry

if TYPE_CHECKING:
    import torch

PackedRow = Sequence[Sample]
_PER_TOKEN = ("tokens", "subs", "is_context", "segments", "num_segments", "sample_ids", "relation_offsets", "spans")


def join_samples(main: Sample, examples: Sequence[Sample]) -> Sample:
    """Show `examples` with their answers to `main`, which sees them; they see only themselves.

    A string has one sub in all of them: those that `main` does not have are numbered on.
    """
    parts = [main.inputs]
    offset = main.inputs["relations"].size
    known: dict[tuple[int, int], int] = {}
    _renumber(main.inputs, known)
    for number, example in enumerate(examples, start=1):
        parts.append(
            {
                **example.inputs,
                "subs": _renumber(example.inputs, known),
                "is_context": np.ones(example.length, dtype=bool),
                "sample_ids": np.full(example.length, number, dtype=np.int32),
                "relation_offsets": np.full(example.length, offset, dtype=np.int32),
            }
        )
        offset += example.inputs["relations"].size
    unseen = sum(example.length for example in examples)
    return Sample(
        {name: np.concatenate([part[name] for part in parts]) for name in main.inputs if name != "strings"},
        np.concatenate([main.labels, np.full(unseen, IGNORED, dtype=np.int32)]),
        np.concatenate([main.weights, np.zeros(unseen, dtype=np.float32)]),
    )


def _renumber(inputs: Mapping[str, np.ndarray], known: dict[tuple[int, int], int]) -> np.ndarray:
    """The subs of a sample by the numbers of `known`, (kind, string) -> sub, which takes up what is new."""
    subs = inputs["subs"].copy()
    for place, text in inputs["strings"].reshape(-1, 2).tolist():
        kind = int(inputs["tokens"][place])
        subs[place] = known.setdefault((kind, text), sum(other == kind for other, _ in known))
    return subs


def make_batch(rows: Sequence[PackedRow], length: int, *, vocab_size: int, start: int) -> Batch:
    """Pad rows on the right; labels with a sub become ids of the batch's table of (token, sub)."""
    import torch

    joined = [_row(row) for row in rows]
    entries = _entries(joined)
    for row in joined:
        _label_by_column(row, entries, vocab_size, start)
    inputs = {name: _stack([row[name] for row in joined], length) for name in _PER_TOKEN}
    inputs["relations"] = _stack([row["relations"] for row in joined], max(row["relations"].size for row in joined))
    inputs["lengths"] = np.array([row["tokens"].size for row in joined])
    table = np.array(list(entries), dtype=np.int64)
    inputs["ext_tokens"], inputs["ext_subs"] = (np.tile(table[:, part], (len(rows), 1)) for part in (0, 1))
    if (windows := _windows(rows, length)) is not None:
        inputs["windows"] = windows
    labels = _stack([row["labels"] for row in joined], length, IGNORED)
    weights = _stack([row["weights"] for row in joined], length)
    return Batch(tensors(inputs), torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(weights))


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays as the model takes them: int64, or bool."""
    import torch

    return {name: torch.from_numpy(a if a.dtype == bool else a.astype(np.int64)) for name, a in arrays.items()}


def _row(row: PackedRow) -> dict[str, np.ndarray]:
    """One row's samples end to end, each with its own span and its own part of the relations."""
    offsets = np.cumsum([0, *(sample.inputs["relations"].size for sample in row)])
    parts = [
        {
            **sample.inputs,
            "labels": sample.labels,
            "weights": sample.weights,
            "spans": np.full(sample.length, span, dtype=np.int32),
            "relation_offsets": sample.inputs["relation_offsets"] + offsets[span],
        }
        for span, sample in enumerate(row)
    ]
    names = (*_PER_TOKEN, "relations", "labels", "weights")
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _entries(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[Entry, int]:
    """Number the distinct (token, sub > 0) of a batch in the order of their appearance."""
    entries: dict[Entry, int] = {}
    for row in rows:
        has_sub = row["subs"] > 0
        for entry in zip(row["tokens"][has_sub].tolist(), row["subs"][has_sub].tolist(), strict=True):
            entries.setdefault(entry, len(entries))
    # kept: the original never trains without an extra id, which counts in the softmax (golden bee_encode).
    return entries or {(0, 1): 0}


def _label_by_column(row: dict[str, np.ndarray], entries: dict[Entry, int], vocab_size: int, start: int) -> None:
    has_sub = (row["subs"][1:] > 0) & (row["labels"][:-1] != IGNORED) & (row["tokens"][1:] != start)
    for place in np.flatnonzero(has_sub):
        entry = int(row["tokens"][place + 1]), int(row["subs"][place + 1])
        row["labels"][place] = vocab_size + entries[entry]


def _windows(rows: Sequence[PackedRow], length: int) -> np.ndarray | None:
    """Positions that attend among themselves: int64 `[batch, windows, longest sample]`, -1 beyond the end.

    Neighbours share a window while they fit; the model keeps their spans apart. None where windows save nothing.
    """
    longest = max(sample.length for row in rows for sample in row)
    bounds = [_window_bounds(row, longest) for row in rows]
    most = max(map(len, bounds))
    if most * longest * longest >= length * length:
        return None
    windows = np.full((len(rows), most, longest), -1, dtype=np.int64)
    for number, row in enumerate(bounds):
        for window, (begin, end) in enumerate(row):
            windows[number, window, : end - begin] = np.arange(begin, end)
    return windows


def _window_bounds(row: PackedRow, longest: int) -> list[tuple[int, int]]:
    bounds, begin, end = [], 0, 0
    for sample in row:
        if end + sample.length - begin > longest:
            bounds.append((begin, end))
            begin = end
        end += sample.length
    return [*bounds, (begin, end)]


def _stack(arrays: Sequence[np.ndarray], length: int, padding: int = 0) -> np.ndarray:
    stacked = np.full((len(arrays), length), padding, dtype=arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        assert array.size <= length, f"a row of {array.size} does not fit into {length}"
        row[: array.size] = array
    return stacked
