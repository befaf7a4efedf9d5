"""KV cache of incremental decoding: keys and values of each block, and the inputs that masks are made of, by
position.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from hanlin.core.batch import NO_SPAN
from hanlin.layers.attention import KeysOfRows

_MIN_CAPACITY = 64


class KVCache:
    """KV cache that grows by positions: `add_positions` first (it says how many come), then `update` in each block.

    Its capacity is doubled when it runs out, so that a new position costs no copy of the earlier ones.
    """

    def __init__(self) -> None:
        self.length = 0
        self._inputs: dict[str, torch.Tensor] = {}
        self._used: dict[Hashable, int] = {}
        self._keys: dict[Hashable, torch.Tensor] = {}
        self._values: dict[Hashable, torch.Tensor] = {}
        self._cross_attention_kv: dict[Hashable, tuple[torch.Tensor, ...]] = {}
        self._stages: dict[int, KVCache] = {}

    def add_positions(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Add inputs of the next positions, `[batch, positions]` each; return them for all positions so far."""
        assert inputs, "at least one input says how many positions come"
        start = self.length
        self.length += next(iter(inputs.values())).shape[1]
        for name, given in inputs.items():
            self._inputs[name] = _write(self._inputs.get(name), given, start, dim=1)
        return {name: self._inputs[name].narrow(1, 0, self.length) for name in inputs}

    def update(self, block: Hashable, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a block's keys and values of the new positions, `[batch, heads, positions, head_dim]`; return all so far.

        A prefix (layers/prefix.py) comes with the first positions and is not counted.
        """
        start = self._used.get(block, 0)
        end = self._used[block] = start + keys.shape[2]
        self._keys[block] = _write(self._keys.get(block), keys, start, dim=2)
        self._values[block] = _write(self._values.get(block), values, start, dim=2)
        return self._keys[block].narrow(2, 0, end), self._values[block].narrow(2, 0, end)

    def keys_of_rows(self, block: Hashable, keys: torch.Tensor, values: torch.Tensor) -> list[KeysOfRows]:
        """`update`, for `attention_by_rows`."""
        return [KeysOfRows(slice(None), *self.update(block, keys, values))]

    @property
    def has_keys(self) -> bool:
        """Whether a block has put its keys and values here, in an earlier call."""
        return bool(self._used)

    @property
    def has_cross_attention(self) -> bool:
        return bool(self._cross_attention_kv)

    def set_cross_attention(self, block: Hashable, *tensors: torch.Tensor, prefix: int = 0) -> None:
        """Remember keys and values `[batch, heads, length, head_dim]` of an encoder's text, or only that it has run;
        prefix: how many of them stand before the text.
        """
        del prefix
        self._cross_attention_kv[block] = tensors

    def cross_attention(self, block: Hashable) -> list[KeysOfRows]:
        """Keys and values of an encoder's text, for `attention_by_rows`."""
        keys, values = self._cross_attention_kv[block]
        return [KeysOfRows(slice(None), keys, values)]

    def cut(self) -> KVCache:
        """What a single row has here, for any number of rows that go on from it; this one stays as it is."""
        other = KVCache()
        other.length, other._used = self.length, dict(self._used)
        # Without room behind it: who writes there makes room of its own, for its own number of rows.
        other._inputs = {name: held.narrow(1, 0, self.length) for name, held in self._inputs.items()}
        other._keys = {block: held.narrow(2, 0, self._used[block]) for block, held in self._keys.items()}
        other._values = {block: held.narrow(2, 0, self._used[block]) for block, held in self._values.items()}
        return other

    def of_stage(self, number: int) -> KVCache:
        """The cache of one of several stages of a model on this rank, each of which adds the positions."""
        return self._stages.setdefault(number, KVCache())


def pad_right(tensor: torch.Tensor, length: int, *, dim: int, name: str = "") -> torch.Tensor:
    """Padding behind a tensor's own entries along `dim`; name: of the input that it is."""
    missing = length - tensor.shape[dim]
    return torch.cat([tensor, _padding(tensor, missing, dim, name)], dim=dim) if missing else tensor


def filler_of(name: str) -> int:
    """What an input has where there is no position, so that no query looks at it."""
    return NO_SPAN if name.endswith("spans") else 0


def _padding(tensor: torch.Tensor, count: int, dim: int, name: str = "") -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dim] = count
    return tensor.new_full(shape, filler_of(name))


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
