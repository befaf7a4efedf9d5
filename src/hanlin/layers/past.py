"""What the columns before the present ones leave behind: keys and values of each block, and facts about each column."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

_MIN_CAPACITY = 64


class Past:
    """A cache that grows column by column: `note` first (it says how many columns come), then `append` in each block.

    Room is doubled when it runs out, so writing a column costs no copy of the earlier ones.
    """

    def __init__(self) -> None:
        self.length = 0
        self._facts: dict[str, torch.Tensor] = {}
        self._used: dict[Hashable, int] = {}
        self._prefix_length = 0
        self._keys: dict[Hashable, torch.Tensor] = {}
        self._values: dict[Hashable, torch.Tensor] = {}
        self._kept: dict[Hashable, tuple[torch.Tensor, ...]] = {}
        self._stages: dict[int, Past] = {}

    def note(self, **facts: torch.Tensor) -> dict[str, torch.Tensor]:
        """Add facts of the next columns, `[rows, columns]` each; return them for all columns so far."""
        assert facts, "at least one fact says how many columns come"
        start = self.length
        self.length += next(iter(facts.values())).shape[1]
        for name, fact in facts.items():
            self._facts[name] = _write(self._facts.get(name), fact, start, dim=1)
        return {name: self._facts[name].narrow(1, 0, self.length) for name in facts}

    def append(self, block: Hashable, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a block's keys and values of the noted columns, `[rows, heads, columns, head_dim]`; return all so far.

        A prefix (layers/prefix.py) comes with the first columns and is not noted.
        """
        start = self._used.get(block, 0)
        end = self._used[block] = start + keys.shape[2]
        if not start:
            self._prefix_length = end - self.length
        self._keys[block] = _write(self._keys.get(block), keys, start, dim=2)
        self._values[block] = _write(self._values.get(block), values, start, dim=2)
        return self._keys[block].narrow(2, 0, end), self._values[block].narrow(2, 0, end)

    def cut(self, length: int) -> None:
        """Forget all columns but the first `length`, at least one; a prefix stays."""
        assert 0 < length <= self.length, (length, self.length)
        self.length = length
        self._used = dict.fromkeys(self._used, self._prefix_length + length)

    @property
    def has_kept(self) -> bool:
        return bool(self._kept)

    def keep(self, block: Hashable, *tensors: torch.Tensor) -> None:
        """Remember tensors `[rows, ...]` that do not grow (keys and values of an encoder), or only that it has run."""
        self._kept[block] = tensors

    def kept(self, block: Hashable) -> tuple[torch.Tensor, ...]:
        return self._kept[block]

    def of_stage(self, number: int) -> Past:
        """The past of one of several stages of a model on this rank, each of which notes the columns; it is not cut."""
        return self._stages.setdefault(number, Past())

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times (beams)."""
        for past in self._stages.values():
            past.select(rows)
        self._facts = _select(self._facts, rows)
        self._keys = _select(self._keys, rows)
        self._values = _select(self._values, rows)
        self._kept = {
            block: tuple(tensor.index_select(0, rows) for tensor in tensors) for block, tensors in self._kept.items()
        }


def _select(store: dict[Any, torch.Tensor], rows: torch.Tensor) -> dict[Any, torch.Tensor]:
    return {name: tensor.index_select(0, rows) for name, tensor in store.items()}


def _write(room: torch.Tensor | None, piece: torch.Tensor, start: int, dim: int) -> torch.Tensor:
    end = start + piece.shape[dim]
    if room is None or room.shape[dim] < end:
        room = _enlarge(room, piece, max(_MIN_CAPACITY, 2 * end), dim)
    room.narrow(dim, start, end - start).copy_(piece)
    return room


def _enlarge(room: torch.Tensor | None, piece: torch.Tensor, capacity: int, dim: int) -> torch.Tensor:
    shape = list(piece.shape)
    shape[dim] = capacity
    larger = piece.new_empty(shape)
    if room is not None:
        larger.narrow(dim, 0, room.shape[dim]).copy_(room)
    return larger
