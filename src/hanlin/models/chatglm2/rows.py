"""ChatGLM2's samples and prompts -> the tensors of a batch.

Samples of one row never see each other: each stands in a window of its own, or in one with its neighbours, then told
apart by `spans`. Positions begin at 0 in each sample. Padding on the right needs no mask, since nobody looks ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Sample

if TYPE_CHECKING:
    import torch

NO_SPAN = -1
"""The span of padding."""

Bounds = list[tuple[int, int]]
"""Where the windows of a row begin and end."""


def collate(rows: Sequence[Sequence[Sample]], length: int, pad: int) -> Batch:
    """Pack samples into `[rows, length]`: tokens, positions; for packed rows also windows or spans or both."""
    import torch

    tokens = np.full((len(rows), length), pad, dtype=np.int64)
    positions, spans, labels = np.zeros_like(tokens), np.full_like(tokens, NO_SPAN), np.full_like(tokens, IGNORED)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for number, row in enumerate(rows):
        edges = _edges(row)
        assert edges[-1] <= length, f"a row of {edges[-1]} does not fit into {length}"
        for span, (sample, start, end) in enumerate(zip(row, edges, edges[1:], strict=False)):
            place = number, slice(start, end)
            tokens[place], positions[place], spans[place] = sample.inputs["tokens"], np.arange(end - start), span
            labels[place], weights[place] = sample.labels, sample.weights
    inputs = {"tokens": tokens, "positions": positions, **_sight(rows, spans, length)}
    return Batch(tensors(inputs), torch.from_numpy(labels), torch.from_numpy(weights))


def pad_left(prompts: Sequence[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
    """Prompts as tokens, positions (0 at padding) and is_padding."""
    length = max(map(len, prompts))
    tokens = np.full((len(prompts), length), pad, dtype=np.int64)
    positions, is_padding = np.zeros_like(tokens), np.ones(tokens.shape, dtype=bool)
    for number, prompt in enumerate(prompts):
        place = number, slice(length - len(prompt), length)
        tokens[place], positions[place], is_padding[place] = prompt, np.arange(len(prompt)), False
    return tensors({"tokens": tokens, "positions": positions, "is_padding": is_padding})


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _edges(row: Sequence[Sample]) -> list[int]:
    return list(accumulate((sample.length for sample in row), initial=0))


def _sight(rows: Sequence[Sequence[Sample]], spans: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """What keeps packed samples apart, the cheapest way: windows of one sample, windows with spans, spans."""
    if all(len(row) == 1 for row in rows):
        return {}
    width = max(sample.length for row in rows for sample in row)
    alone = [list(pairwise(_edges(row))) for row in rows]
    shared = [_share_windows(bounds, width) for bounds in alone]
    # The scores that attention computes for a row, per score of a window; windows of one sample need no mask.
    cost_alone, cost_shared, cost_row = max(map(len, alone)), max(map(len, shared)), (length / width) ** 2
    if cost_alone <= min(2 * cost_shared, cost_row):
        return {"windows": _window_columns(alone, width)}
    if cost_shared < cost_row:
        return {"spans": spans, "windows": _window_columns(shared, width)}
    return {"spans": spans}


def _share_windows(bounds: Bounds, width: int) -> Bounds:
    """Neighbours share a window while they fit."""
    shared: Bounds = []
    for start, end in bounds:
        if shared and end - shared[-1][0] <= width:
            shared[-1] = shared[-1][0], end
        else:
            shared.append((start, end))
    return shared


def _window_columns(bounds: Sequence[Bounds], width: int) -> np.ndarray:
    """`[rows, windows, width]` columns inside the row, -1 beyond the end."""
    windows = np.full((len(bounds), max(map(len, bounds)), width), -1, dtype=np.int64)
    for number, row in enumerate(bounds):
        for window, (start, end) in enumerate(row):
            windows[number, window, : end - start] = np.arange(start, end)
    return windows
