"""Which tokens may come next, looked up in what was read and written before (prompt lookup decoding, Saxena 2023).

A model that reads several positions at once, for little more than one costs it, tells of each guess whether it is what
it would have chosen (speculative decoding, Leviathan et al. 2023). So an answer has its tokens, only sooner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LONGEST, _SHORTEST = 4, 2
"""Tokens that must have stood there before; a single one is too often followed by something else."""
FIRST_COUNT = 4
"""Guesses at first."""


def guess_next(known: Sequence[int], most: int) -> list[int]:
    """What followed where the last tokens stood before, the longest run of them, there the last time; [] if nowhere."""
    ids = np.asarray(known)
    for size in range(min(_LONGEST, len(ids) - 1), _SHORTEST - 1, -1):
        starts = np.flatnonzero(ids[: len(ids) - size] == ids[-size])
        for place in range(1, size):
            starts = starts[ids[starts + place] == ids[place - size]]
        if len(starts):
            begin = int(starts[-1]) + size
            return ids[begin : begin + most].tolist()
    return []


def next_count(right: int, guessed: int) -> int:
    """How many to guess after so many of the last ones were right: what is wrong costs time."""
    return 2 * guessed if right == guessed else max(right, 1) + 1
