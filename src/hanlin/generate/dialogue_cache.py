"""What a model has read of a dialogue, kept between its turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch

from hanlin.layers.kv_cache import KVCache

Column = tuple[int, ...]
"""The inputs of one column, in the order of their names."""


class DialogueCache:
    """The KV cache of one dialogue, and the columns that it was made of: a turn that begins with the same ones reads
    the rest.

    Only for models whose columns never see a later one, as those of all families that can be talked with.
    """

    def __init__(self) -> None:
        self.kv_cache = KVCache()
        self.columns: list[Column] = []

    def begin(self, wanted: Sequence[Column]) -> int:
        """Forget what is not wanted; return how many of the wanted columns are known, which are the first ones."""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.columns, wanted, strict=False))
        known = sum(1 for _ in same)
        del self.columns[known:]
        if known:
            self.kv_cache.crop(known)
        else:
            self.kv_cache = KVCache()
        return known


def columns_of(inputs: Mapping[str, torch.Tensor]) -> list[Column]:
    """The columns of a batch of one row; inputs: int `[1, length]` each."""
    return list(zip(*(tensor[0].tolist() for _, tensor in sorted(inputs.items())), strict=True))
