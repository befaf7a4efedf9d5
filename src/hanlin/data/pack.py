"""Which samples share a row. Pure functions of lengths; a sample is named by its number."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np

OPEN_ROWS = 1024
"""Rows that wait for more samples; more of them pack tighter and spread an epoch's short samples less evenly."""
POOL_BATCHES = 50
"""Batches whose rows are sorted by length together when rows are not packed."""

SampleNumbers = list[int]
Shuffle = bool | Literal["once"]
"""See `data.shuffle` of a recipe."""


class SingleRows(Sequence[SampleNumbers]):
    """One sample a row; millions of them take no more room than their numbers."""

    def __init__(self, order: np.ndarray) -> None:
        """order: the samples, in the order of the rows."""
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, at: int) -> SampleNumbers: ...

    @overload
    def __getitem__(self, at: slice) -> list[SampleNumbers]: ...

    def __getitem__(self, at: int | slice) -> SampleNumbers | list[SampleNumbers]:
        return self.order[at, None].tolist()


def plan_rows(lengths: np.ndarray, order: np.ndarray, max_length: int) -> list[SampleNumbers]:
    """Pack a whole epoch by the best-fit rule with many open rows; rows come in the order they were begun.

    lengths: of every sample, none above `max_length`; order: the samples of the epoch.
    """
    rows: list[SampleNumbers] = []
    open_rows: list[tuple[int, int]] = []  # (free space, row), sorted
    shortest = int(lengths[order].min()) if len(order) else 0
    for number, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        at = bisect_left(open_rows, (length, -1))
        if at < len(open_rows):
            free, row = open_rows.pop(at)
            rows[row].append(number)
        else:
            free, row = max_length, len(rows)
            rows.append([number])
        if free - length >= shortest:
            insort(open_rows, (free - length, row))
        if len(open_rows) > OPEN_ROWS:
            del open_rows[0]  # the fullest one
    return rows


def pool_rows(lengths: np.ndarray, order: np.ndarray, batch_size: int, rng: np.random.Generator) -> SingleRows:
    """One sample a row, rows of similar length together in a batch, batches in random order.

    What does not fill a batch comes last, so that every other batch is full.
    """
    full = len(order) - len(order) % batch_size
    planned = []
    for start in range(0, full, batch_size * POOL_BATCHES):
        pool = order[start : min(start + batch_size * POOL_BATCHES, full)]
        batches = pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch_size)
        planned.append(batches[rng.permutation(len(batches))].reshape(-1))
    return SingleRows(np.concatenate([*planned, order[full:]]).astype(np.int64))


def draw_each_once(count: int, seed: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
    """An epoch that reads each of `count` samples once: their order, and the pass of each, which is the first."""
    order = np.arange(count)
    if shuffle:
        order = shuffle_once(count, seed) if shuffle == "once" else rng.permutation(count)
    return order, np.broadcast_to(np.int64(0), order.shape)


def shuffle_once(count: int, seed: int) -> np.ndarray:
    """One order of `count` samples for all epochs, number by number that of CPM-2's program."""
    import torch

    generator = torch.Generator()
    if seed != 1234:  # kept (cpm2_metrics): its default seed is never given to the generator
        generator.manual_seed(seed)
    return torch.randperm(count, generator=generator).numpy()


def padding_share(lengths: np.ndarray, rows: Sequence[SampleNumbers], max_length: int) -> float:
    """The share of `max_length` that is empty, over all rows."""
    return 1 - sum(int(lengths[row].sum()) for row in rows) / (len(rows) * max_length) if rows else 0.0
