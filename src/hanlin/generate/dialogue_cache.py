"""What a model has read of a dialogue, kept between its turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch

from hanlin.layers.kv_cache import KVCache

PositionInputs = tuple[int, ...]
"""The inputs of one position, in the order of their names."""


class DialogueCache:
    """The KV cache of one dialogue, and the positions that it was made of: a turn that begins with the same ones reads
    the rest.

    Only for models whose positions never see a later one, as those of all families that can be talked with.
    """

    def __init__(self) -> None:
        self.kv_cache = KVCache()
        self.positions: list[PositionInputs] = []

    def crop_to(self, wanted: Sequence[PositionInputs]) -> int:
        """Forget what is not wanted; return how many of the wanted positions are known, which are the first ones."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.positions, wanted, strict=False))
        known = sum(1 for _ in same)
        del self.positions[known:]
        if known:
            self.kv_cache.crop(known)
        else:
            self.kv_cache = KVCache()
        return known


def positions_of(inputs: Mapping[str, torch.Tensor]) -> list[PositionInputs]:
    """The positions of a batch of one row; inputs: int `[1, length]` each."""
    return list(zip(*(tensor[0].tolist() for _, tensor in sorted(inputs.items())), strict=True))
