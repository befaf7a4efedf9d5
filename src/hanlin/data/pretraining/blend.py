"""Several sets of samples as one, each with its share: the choice of Megatron's blended data sets, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MARGIN = 1.005
"""What the original asks of each set beyond its share, so that none runs out."""


def blend(shares: Sequence[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `size` samples the set it comes from and its number in there: `[size]` uint8 and int64.

    The next sample is always from the set that lags furthest behind its share, the first of equals; shares sum to 1.
    """
    sets, numbers = np.empty(size, np.uint8), np.empty(size, np.int64)
    counts = [0] * len(shares)
    others = list(enumerate(shares))[1:]
    for place in range(size):
        wanted = max(place, 1)
        chosen, most = 0, shares[0] * wanted - counts[0]
        for number, share in others:
            lag = share * wanted - counts[number]
            if lag > most:
                chosen, most = number, lag
        sets[place], numbers[place] = chosen, counts[chosen]
        counts[chosen] += 1
    return sets, numbers
