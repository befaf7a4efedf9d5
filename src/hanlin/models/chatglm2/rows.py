"""ChatGLM2's samples and prompts -> the tensors of a batch.

Samples of one row never see each other (`spans`), and positions begin at 0 in each.
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


def collate(rows: Sequence[Sequence[Sample]], length: int, pad: int) -> Batch:
    """Pack samples into `[rows, length]`: tokens, positions, spans.

    Without spans when every row is one sample: padding on the right needs no mask, since nobody looks ahead.
    """
    import torch

    inputs = _padding((len(rows), length), pad)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for number, row in enumerate(rows):
        edges = list(accumulate((sample.length for sample in row), initial=0))
        assert edges[-1] <= length, f"a row of {edges[-1]} does not fit into {length}"
        for span, (sample, (start, end)) in enumerate(zip(row, pairwise(edges), strict=True)):
            place = number, slice(start, end)
            _write(inputs, place, sample.inputs["tokens"], span)
            labels[place], weights[place] = sample.labels, sample.weights
    if all(len(row) == 1 for row in rows):
        del inputs["spans"]
    return Batch(_tensors(inputs), torch.from_numpy(labels), torch.from_numpy(weights))


def pad_left(prompts: Sequence[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
    """The tokens of prompts as tokens, positions (0 at padding) and spans."""
    length = max(map(len, prompts))
    inputs = _padding((len(prompts), length), pad)
    for number, prompt in enumerate(prompts):
        _write(inputs, (number, slice(length - len(prompt), length)), prompt, 0)
    return _tensors(inputs)


def _padding(shape: tuple[int, int], pad: int) -> dict[str, np.ndarray]:
    fillers = {"tokens": pad, "positions": 0, "spans": NO_SPAN}
    return {name: np.full(shape, filler, dtype=np.int64) for name, filler in fillers.items()}


def _write(inputs: Mapping[str, np.ndarray], place: tuple[int, slice], tokens: np.ndarray, span: int) -> None:
    inputs["tokens"][place], inputs["positions"][place], inputs["spans"][place] = tokens, np.arange(len(tokens)), span


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}
