"""KV cache of incremental decoding: keys and values of each block, and the inputs that masks are made of, by
position.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch

from hanlin.core.batch import NO_SPAN

_MIN_CAPACITY = 64


class KVCache:
    """KV cache that grows by positions: `add_positions` first (it says how many come), then `update` in each block.

    Its capacity is doubled when it runs out, so that a new position costs no copy of the earlier ones.
    """

    def __init__(self) -> None:
        self.length = 0
        self._inputs: dict[str, torch.Tensor] = {}
        self._used: dict[Hashable, int] = {}
        self._prefix_length = 0
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
        if not start:
            self._prefix_length = end - self.length
        self._keys[block] = _write(self._keys.get(block), keys, start, dim=2)
        self._values[block] = _write(self._values.get(block), values, start, dim=2)
        return self._keys[block].narrow(2, 0, end), self._values[block].narrow(2, 0, end)

    def crop(self, length: int) -> None:
        """Forget all positions but the first `length`, at least one; a prefix stays."""
        assert 0 < length <= self.length, (length, self.length)
        self.length = length
        self._used = dict.fromkeys(self._used, self._prefix_length + length)

    @property
    def has_keys(self) -> bool:
        """Whether a block has put its keys and values here, in an earlier call."""
        return bool(self._used)

    @property
    def has_cross_attention(self) -> bool:
        return bool(self._cross_attention_kv)

    def set_cross_attention(self, block: Hashable, *tensors: torch.Tensor) -> None:
        """Remember keys and values `[batch, heads, length, head_dim]` of an encoder's text, or only that it has run."""
        self._cross_attention_kv[block] = tensors

    def cross_attention(self, block: Hashable) -> tuple[torch.Tensor, ...]:
        return self._cross_attention_kv[block]

    def of_stage(self, number: int) -> KVCache:
        """The cache of one of several stages of a model on this rank, each of which adds the positions; no `crop`."""
        return self._stages.setdefault(number, KVCache())

    def forget_first(self, count: int) -> None:
        """Forget the oldest positions, which must be padding; a prefix stays."""
        if not count:
            return
        assert 0 < count < self.length, (count, self.length)
        for kv_cache in self._stages.values():
            kv_cache.forget_first(count)
        prefix, end = self._prefix_length, self._prefix_length + self.length

        def left(store: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
            return {
                block: torch.cat([room[:, :, :prefix], room[:, :, prefix + count : end]], dim=2)
                for block, room in store.items()
            }

        self._keys, self._values = left(self._keys), left(self._values)
        self._inputs = {name: room[:, count : self.length] for name, room in self._inputs.items()}
        self.length -= count
        self._used = dict.fromkeys(self._used, end - count)

    def join(self, other: KVCache) -> None:
        """Take in the entries of another cache behind the own ones, the newest positions of both side by side.

        What the shorter one lacks stands before its first position, behind a prefix, as padding: its `spans` are -1
        and its other inputs 0, so that no query looks at it. The other cache is used up. Where memory runs out,
        this one is as before.
        """
        for number, kv_cache in self._stages.items():
            kv_cache.join(other._stages[number])
        assert self._prefix_length == other._prefix_length or not self._used, "caches of two models"
        length, prefix = max(self.length, other.length), self._prefix_length

        def joined(own: Mapping[Hashable, torch.Tensor], theirs: Mapping[Hashable, torch.Tensor]) -> dict:
            pairs = {block: ((self, own[block]), (other, theirs[block])) for block in own}
            return {
                block: torch.cat(
                    [_pad_middle(room[:, :, : prefix + part.length], prefix, prefix + length) for part, room in pair]
                )
                for block, pair in pairs.items()
            }

        inputs = {
            name: torch.cat([_pad_left(part._filled(name), length, name=name) for part in (self, other)])
            for name in self._inputs
        }
        keys, values = joined(self._keys, other._keys), joined(self._values, other._values)
        cross = {
            block: tuple(map(_stack_cross, tensors, other._cross_attention_kv[block]))
            for block, tensors in self._cross_attention_kv.items()
        }
        self._inputs, self._keys, self._values, self._cross_attention_kv = inputs, keys, values, cross
        self.length = length
        self._used = dict.fromkeys(self._used, prefix + length)

    def _filled(self, name: str) -> torch.Tensor:
        return self._inputs[name].narrow(1, 0, self.length)

    def reorder(self, indices: torch.Tensor) -> None:
        """Keep these entries of the batch, in this order; one may be taken several times (beams)."""
        for kv_cache in self._stages.values():
            kv_cache.reorder(indices)
        self._inputs = _select(self._inputs, indices)
        self._keys = _select(self._keys, indices)
        self._values = _select(self._values, indices)
        self._cross_attention_kv = {
            block: tuple(tensor.index_select(0, indices) for tensor in tensors)
            for block, tensors in self._cross_attention_kv.items()
        }


def pad_right(tensor: torch.Tensor, length: int, *, dim: int, name: str = "") -> torch.Tensor:
    """Padding behind a tensor's own entries along `dim`; name: of the input that it is."""
    missing = length - tensor.shape[dim]
    return torch.cat([tensor, _padding(tensor, missing, dim, name)], dim=dim) if missing else tensor


def _pad_left(tensor: torch.Tensor, length: int, *, name: str) -> torch.Tensor:
    missing = length - tensor.shape[1]
    return torch.cat([_padding(tensor, missing, 1, name), tensor], dim=1) if missing else tensor


def _pad_middle(tensor: torch.Tensor, prefix: int, length: int) -> torch.Tensor:
    """`[batch, heads, positions, head_dim]` with padding behind the prefix."""
    missing = length - tensor.shape[2]
    if not missing:
        return tensor
    return torch.cat([tensor[:, :, :prefix], _padding(tensor, missing, 2), tensor[:, :, prefix:]], dim=2)


def _padding(tensor: torch.Tensor, count: int, dim: int, name: str = "") -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dim] = count
    return tensor.new_full(shape, NO_SPAN if name.endswith("spans") else 0)


def _stack_cross(own: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    length = max(own.shape[2], theirs.shape[2])
    return torch.cat([pad_right(part, length, dim=2) for part in (own, theirs)])


def _select(store: dict[Any, torch.Tensor], indices: torch.Tensor) -> dict[Any, torch.Tensor]:
    return {name: tensor.index_select(0, indices) for name, tensor in store.items()}


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
