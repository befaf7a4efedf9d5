"""Where the documents of a row stand, told from where they end; an end is the last position of its own document."""

from __future__ import annotations

import numpy as np


def number_documents(is_end: np.ndarray) -> np.ndarray:
    """The number of each position's document, from 0 on: int32 `[length]`."""
    return (np.cumsum(is_end) - is_end).astype(np.int32)


def count_positions(is_end: np.ndarray) -> np.ndarray:
    """Positions counted from 0 in each document: int32 `[length]`."""
    positions = np.arange(len(is_end))
    begins = np.concatenate(([0], np.where(is_end, positions + 1, 0)))[: len(is_end)]
    return (positions - np.maximum.accumulate(begins)).astype(np.int32)
