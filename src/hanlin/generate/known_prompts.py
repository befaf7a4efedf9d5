"""What was read of prompts and answers that are done: another one that begins alike need not read it again.

Only for models whose positions never see a later one. The least recently used one is forgotten first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile

import torch

from hanlin.layers.slot_cache import Slot, SlotCache

Positions = list[tuple[str | int, ...]]
"""Of each position the adapter that has read it, and its inputs in the order of their names."""

_ENOUGH = 64
"""Positions that are worth a copy in any case."""


class KnownPrompts:
    """At most `limit` slots of a cache, each with the positions that it holds."""

    def __init__(self, cache: SlotCache, limit: int) -> None:
        self._cache, self.limit = cache, limit
        self._kept: dict[Slot, Positions] = {}  # the least recently used one first
        cache.forget = self.forget_oldest

    def keep(self, slot: Slot, positions: Positions) -> None:
        """Take over a slot."""
        if positions and self.limit:
            self._kept[slot] = positions
        else:
            self._cache.give_back([slot])
        while len(self._kept) > self.limit:
            self.forget_oldest()

    def find(self, wanted: Positions, others: Iterable[tuple[Slot, Positions]] = ()) -> tuple[Slot | None, int]:
        """The slot that has most of the wanted positions, of these and of others, and how many; none where they are too
        few to be worth it. It is the one that is forgotten last.
        """
        if not self.limit:
            return None, 0
        best: tuple[Slot | None, int] = (None, 0)
        for slot, positions in (*self._kept.items(), *others):
            place = best[1]  # who has not this one has no more than the best; many begin alike
            if place >= min(slot.length, len(positions), len(wanted)) or positions[place] != wanted[place]:
                continue
            length = shared_beginning(positions[: slot.length], wanted)
            if length > best[1]:
                best = slot, length
        if best[0] in self._kept:
            self._kept[best[0]] = self._kept.pop(best[0])
        return best

    def forget_oldest(self) -> bool:
        """Give the slot of the least recently used one back; False where there is none."""
        slot = next(iter(self._kept), None)
        if slot is None:
            return False
        del self._kept[slot]
        self._cache.give_back([slot])
        return True


def positions_of(inputs: Mapping[str, torch.Tensor], adapter: str = "") -> Positions:
    """The positions of a batch of one row; inputs: int `[1, length]` each."""
    values = zip(*(tensor[0].tolist() for _, tensor in sorted(inputs.items())), strict=True)
    return [(adapter, *position) for position in values]


def shared_beginning(some: Positions, wanted: Positions) -> int:
    """How many positions both begin with; 0 where what is left of the wanted ones is better read with others'."""
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, wanted, strict=False)))
    return length if length >= _ENOUGH or 2 * length >= len(wanted) else 0
