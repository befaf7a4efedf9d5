"""Samples and prompts of decoders -> the tensors of a batch: tokens, positions, spans.

Samples of one row never see each other (`spans`). Positions begin at 0 in each; a sample may bring its own, and spans
inside of it, numbered from 0, or branches (models/common/multi_turn.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.batch import IGNORED, NO_SPAN, Batch, Prompt, PromptBatch, Sample

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextCursor:
    """The next position of a decoder: `token` at `position`; ends: the tokens that end the answer."""

    token: int
    position: int
    ends: frozenset[int]
    is_done: bool = False

    def inputs(self) -> dict[str, int]:
        return {"tokens": self.token, "positions": self.position, "spans": 0}

    def advance(self, token: int) -> TextCursor:
        return TextCursor(token, self.position + 1, self.ends, token in self.ends)


def collate(rows: Sequence[Sequence[Sample]], length: int, pad: int) -> Batch:
    """Pack samples into `[batch, length]`: tokens, positions, spans.

    Without spans when every row is one span: padding on the right needs no mask, since nobody looks ahead.
    """
    import torch

    inputs = _padding((len(rows), length), pad)
    if any("branches" in sample.inputs for row in rows for sample in row):
        inputs["branches"] = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for number, row in enumerate(rows):
        edges = list(accumulate((sample.length for sample in row), initial=0))
        assert edges[-1] <= length, f"a row of {edges[-1]} does not fit into {length}"
        span = 0
        for sample, (start, end) in zip(row, pairwise(edges), strict=True):
            place = number, slice(start, end)
            _write(inputs, place, sample.inputs, span)
            labels[place], weights[place] = sample.labels, sample.weights
            span = int(inputs["spans"][place].max(initial=span)) + 1
    if inputs["spans"].max() <= 0:
        del inputs["spans"]
    return Batch(_tensors(inputs), torch.from_numpy(labels), torch.from_numpy(weights))


def pad_left(prompts: Sequence[np.ndarray], pad: int) -> dict[str, torch.Tensor]:
    """The tokens of prompts as tokens, positions (0 at padding) and spans; one position at least."""
    length = max(1, *map(len, prompts))
    inputs = _padding((len(prompts), length), pad)
    for number, prompt in enumerate(prompts):
        _write(inputs, (number, slice(length - len(prompt), length)), {"tokens": prompt}, 0)
    return _tensors(inputs)


def collate_prompts(prompts: Sequence[Prompt], pad: int, banned: Sequence[int]) -> PromptBatch:
    """Prompts padded on the left; banned: ids that no answer may use."""
    inputs = pad_left([prompt.inputs["tokens"] for prompt in prompts], pad)
    return PromptBatch(inputs, [prompt.cursor for prompt in prompts], [banned for _ in prompts])


def _padding(shape: tuple[int, int], pad: int) -> dict[str, np.ndarray]:
    fillers = {"tokens": pad, "positions": 0, "spans": NO_SPAN}
    return {name: np.full(shape, filler, dtype=np.int64) for name, filler in fillers.items()}


def _write(
    inputs: Mapping[str, np.ndarray], place: tuple[int, slice], sample: Mapping[str, np.ndarray], first_span: int
) -> None:
    tokens = sample["tokens"]
    inputs["tokens"][place] = tokens
    inputs["positions"][place] = sample.get("positions", np.arange(len(tokens)))
    inputs["spans"][place] = sample.get("spans", np.zeros(1, np.int64)) + first_span
    if "branches" in inputs:
        inputs["branches"][place] = sample.get("branches", np.zeros(1, np.int64)) + place[1].start


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}
