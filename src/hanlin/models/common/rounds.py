"""What of a dialogue is left out where it leaves no room for an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["longest_that_fits"]

Asked = TypeVar("Asked")
"""A dialogue that waits for an answer, whatever holds it."""


def longest_that_fits(
    dialogue: Asked, without_oldest: Callable[[Asked], Asked | None], fits: Callable[[Asked], bool]
) -> Asked | None:
    """The dialogue without as few of its oldest rounds as it takes to fit; None: not even the newest alone does.

    without_oldest: a copy with a round less; None of the newest round alone. A few tries from the newest round on find
    it: each encodes what is kept, so that the old ones of hundreds of rounds are not encoded hundreds of times.
    """
    shorter = [dialogue]
    while (found := without_oldest(shorter[-1])) is not None:
        shorter.append(found)
    best, too_long, step = len(shorter), -1, 1
    while too_long < best - step:
        if not fits(shorter[best - step]):
            too_long = best - step
            break
        best, step = best - step, 2 * step
    while best - too_long > 1:
        middle = (best + too_long) // 2
        best, too_long = (middle, too_long) if fits(shorter[middle]) else (best, middle)
    return shorter[best] if best < len(shorter) else None
