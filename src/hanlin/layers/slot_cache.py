"""KV cache of many requests: each beam has a slot of its own, and none that joins or leaves moves another's entries.

A slot holds the positions of its beam from its first column on, behind a prefix. Slots of one width lie together in an
arena, a tensor for each block; neighbours are attended to in one go, without a copy. What a call of a model reads and
writes is a `SlotView`; until it is committed, the slots are as they were.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count as numbered
from itertools import groupby, pairwise

import torch

from hanlin.core.transfer import to_device
from hanlin.layers.attention import KeysOfRows
from hanlin.layers.kv_cache import filler_of, pad_right

_SMALLEST_WIDTH = 64
_SMALLEST_ARENA = 4096
"""Positions; below it neighbours would be too few."""

Shared = dict[Hashable, torch.Tensor]


@dataclass(eq=False)
class Arena:
    """Slots of `width` positions each, and of `encoder_width` of an encoder; free: the places that nobody has; used:
    those that somebody had.

    inputs: `[slots, width]` by name; keys, values: `[slots, heads, prefix + width, head_dim]` by block; cross: the
    keys and values of an encoder's text.
    """

    number: int
    count: int
    width: int
    encoder_width: int
    free: list[int]
    used: set[int] = field(default_factory=set)
    inputs: Shared = field(default_factory=dict)
    keys: Shared = field(default_factory=dict)
    values: Shared = field(default_factory=dict)
    cross: Shared = field(default_factory=dict)

    def wipe(self, place: int) -> None:
        """Leave nothing of who had a place: what is masked is multiplied by 0, which NaN and infinity survive."""
        for name, room in self.inputs.items():
            room[place] = filler_of(str(name))
        for store in (self.keys, self.values, self.cross):
            for room in store.values():
                room[place] = 0
        self.used.discard(place)

    @property
    def positions(self) -> int:
        return self.count * (self.width + self.encoder_width)

    def room(self, store: Shared, name: Hashable, like: torch.Tensor, length: int, filler: int = 0) -> torch.Tensor:
        """What a store holds by this name, made where it is new: as `like` `[any, heads, any, size]` or `[any, any]`,
        but of all slots and `length`; filled, since what is masked may not be garbage either.
        """
        if name not in store:
            shape = [self.count, *like.shape[1:]]
            shape[1 if like.dim() == 2 else 2] = length
            store[name] = like.new_full(shape, filler)
        return store[name]


@dataclass(eq=False)
class Slot:
    """Room of one beam; length: the positions that it holds."""

    arena: Arena
    place: int
    length: int = 0

    @property
    def order(self) -> tuple[int, int]:
        return self.arena.number, self.place

    def cut(self, length: int) -> None:
        """Leave nothing to be seen of the positions behind the first ones; their keys are masked."""
        for name, room in self.arena.inputs.items():
            room[self.place, length:] = filler_of(str(name))
        self.length = length

    def copy_from(self, other: Slot, length: int, prefix: int = 0) -> None:
        """Take the first positions of another slot, behind a prefix of so many columns, and its encoder's text."""
        own, theirs = self.arena, other.arena
        for name, room in theirs.inputs.items():
            target = own.room(own.inputs, name, room, own.width, filler_of(str(name)))
            target[self.place, :length] = room[other.place, :length]
        for mine, others in ((own.keys, theirs.keys), (own.values, theirs.values)):
            for block, room in others.items():
                target, used = own.room(mine, block, room, prefix + own.width), prefix + length
                target[self.place, :, :used] = room[other.place, :, :used]
        for name, room in theirs.cross.items():
            before = room.shape[2] - theirs.encoder_width
            own.room(own.cross, name, room, before + own.encoder_width)[self.place] = room[other.place]
        self.length = length


Place = tuple[int, int]
"""A slot: the number of its arena, and its place in it."""


@dataclass(frozen=True)
class ViewOfSlots:
    """What is to be known of a `SlotView` in order to make the same one of another cache, which has followed so far.

    arenas: by number how many slots they have, and their widths; alive: those that are still used; moves: since the
    view before: a slot that is wiped, that gets so many positions of another one, or (of itself) keeps so many; slots:
    with the positions that they hold; counts: as the view has them.
    """

    arenas: dict[int, tuple[int, int, int]]
    alive: set[int]
    prefix_length: int
    moves: list[tuple[Place, Place | None, int]]
    slots: list[tuple[Place, int]]
    counts: list[int] | None


class Budget:
    """Positions that several caches may take together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.caches: list[SlotCache] = []  # another thread may add one while this list is gone through

    @property
    def left(self) -> int:
        return self.limit - sum(cache.positions for cache in self.caches)


class SlotCache:
    """Slots within a budget; None: as many as there is memory for."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget
        if budget is not None:
            budget.caches.append(self)
        # Gives a slot back that is only remembered; whether there was one.
        self.forget: Callable[[], bool] = lambda: False
        self.prefix_length = 0  # columns; known from the first call of the model on
        self._arenas: list[Arena] = []
        self._numbers = numbered()
        self._moves: list[tuple[Slot, Slot | None, int]] = []

    @property
    def positions(self) -> int:
        """That memory is taken for."""
        return sum(arena.positions for arena in self._arenas)

    @property
    def arena_numbers(self) -> set[int]:
        return {arena.number for arena in self._arenas}

    @property
    def bytes(self) -> int:
        """Of the tensors that there are."""
        stores = (store for arena in self._arenas for store in (arena.inputs, arena.keys, arena.values, arena.cross))
        return sum(tensor.nbytes for store in stores for tensor in store.values())

    def width_for(self, length: int) -> int:
        """Of the slots that so many positions go into: one of few widths, so that many requests share it."""
        width = _SMALLEST_WIDTH
        while width < length:
            width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
        return width if self.budget is None else max(length, min(width, self.budget.limit))

    def take(self, count: int, width: int, encoder_width: int = 0) -> list[Slot] | None:
        """Empty slots, the first ones that are free; None where there is no room."""
        alike = [arena for arena in self._arenas if (arena.width, arena.encoder_width) == (width, encoder_width)]
        missing = count - sum(len(arena.free) for arena in alike)
        if missing > 0:
            new = self._new_arena(missing, sum(arena.count for arena in alike), width, encoder_width)
            if new is None:
                return None
            alike.append(new)
        slots = [Slot(arena, place) for arena in alike for place in arena.free][:count]
        for slot in slots:
            if slot.place in slot.arena.used:
                self._move(slot, None, 0)
            slot.arena.free.remove(slot.place)
        return slots

    def copy(self, slot: Slot, source: Slot, length: int) -> None:
        """Give a slot the first positions of another one."""
        self._move(slot, source, length)

    def cut(self, slot: Slot, length: int) -> None:
        """Take a slot's positions away but for the first ones."""
        self._move(slot, slot, length)

    def _move(self, slot: Slot, source: Slot | None, length: int) -> None:
        self._moves.append((slot, source, length))
        if source is None:
            slot.arena.wipe(slot.place)
        elif source.order == slot.order:
            slot.cut(length)
        else:
            slot.copy_from(source, length, self.prefix_length)

    def moves(self) -> list[tuple[Slot, Slot | None, int]]:
        """Those since this was asked last: slots that were wiped, or that got positions of others."""
        moves, self._moves = self._moves, []
        return moves

    def follow(self, view: ViewOfSlots) -> SlotView:
        """The same view of this cache, which has followed another one from its beginning."""
        self.prefix_length = view.prefix_length
        arenas = {arena.number: arena for arena in self._arenas}
        for number, sizes in view.arenas.items():
            arenas.setdefault(number, Arena(number, *sizes, free=[]))

        def slot_at(place: Place, length: int = 0) -> Slot:
            return Slot(arenas[place[0]], place[1], length)

        for place, source, length in view.moves:
            self._move(slot_at(place), None if source is None else slot_at(source), length)
        self._arenas = [arena for arena in arenas.values() if arena.number in view.alive]
        return SlotView(self, [slot_at(*slot) for slot in view.slots], view.counts)

    def give_back(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            insort(slot.arena.free, slot.place)
            slot.arena.used.add(slot.place)
            if self.budget is None and len(slot.arena.free) == slot.arena.count:
                self._arenas.remove(slot.arena)

    def drop_empty(self) -> None:
        """Give memory up that nobody has a slot in."""
        self._arenas = [arena for arena in self._arenas if len(arena.free) < arena.count]

    def ask_others(self) -> bool:
        """Let another cache of the budget forget something; False where there is nothing."""
        others = () if self.budget is None else self.budget.caches
        return any(cache.forget() for cache in others if cache is not self)

    def close(self) -> None:
        if self.budget is not None and self in self.budget.caches:
            self.budget.caches.remove(self)
        self._arenas, self.forget = [], lambda: False

    def _new_arena(self, missing: int, known: int, width: int, encoder_width: int) -> Arena | None:
        size = width + encoder_width
        wanted = missing
        if self.budget is not None:
            if missing * size > self.budget.left:
                for cache in self.budget.caches:
                    cache.drop_empty()
            room = self.budget.left // size
            if room < missing:
                return None
            wanted = min(max(missing, known, _SMALLEST_ARENA // size), room)
        arena = Arena(next(self._numbers), wanted, width, encoder_width, list(range(wanted)))
        self._arenas.append(arena)
        return arena


@dataclass(eq=False)
class _Run:
    """Neighbouring slots, those of some rows of the call; starts: the first column of each that is written; cells: the
    rows and the columns that they write to, if not all to one, the same in all blocks.
    """

    rows: slice
    arena: Arena
    places: slice
    starts: list[int]
    cells: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, store: Shared, name: Hashable, like: torch.Tensor, length: int, filler: int = 0) -> torch.Tensor:
        """Their part of what the arena holds by this name (`Arena.room`)."""
        return self.arena.room(store, name, like, length, filler)[self.places]


class SlotView:
    """What the model reads and writes in one call: the `KVCache` of the rows that stand in these slots.

    slots: in their order; counts: the positions of this call that each row really has, the others being padding on the
    right, which only empty slots may get; None: all. Several positions at once: only of a single row, or of empty ones.
    """

    def __init__(self, cache: SlotCache, slots: Sequence[Slot], counts: Sequence[int] | None = None) -> None:
        self.cache, self._slots, self._counts = cache, slots, counts
        self._moves = cache.moves()
        self._is_fresh = all(slot.length == 0 for slot in slots)
        assert counts is None or self._is_fresh, "only empty slots get padding"
        self.length = max(slot.length for slot in slots)
        self._new = 0
        self._runs = _runs_of(slots)

    @property
    def has_keys(self) -> bool:
        return not self._is_fresh

    @property
    def has_cross_attention(self) -> bool:
        return not self._is_fresh

    def of_stage(self, number: int) -> SlotView:
        """The same one: blocks of all stages have names of their own, and equal positions are written twice."""
        return self

    def commit(self) -> None:
        """The call has ended well: its positions count."""
        for slot, count in zip(self._slots, self._counts or [self._new] * len(self._slots), strict=True):
            slot.length += count

    def described(self) -> ViewOfSlots:
        """The view as it is before it is used."""
        slots = [*self._slots, *(one for slot, source, _ in self._moves for one in (slot, source) if one is not None)]
        return ViewOfSlots(
            {slot.arena.number: (slot.arena.count, slot.arena.width, slot.arena.encoder_width) for slot in slots},
            self.cache.arena_numbers,
            self.cache.prefix_length,
            [(slot.order, None if source is None else source.order, length) for slot, source, length in self._moves],
            [(slot.order, slot.length) for slot in self._slots],
            None if self._counts is None else list(self._counts),
        )

    def add_positions(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """As in a `KVCache`; what a row does not have is padding."""
        self._new = next(iter(inputs.values())).shape[1]
        assert self._is_fresh or self._new == 1 or len(self._slots) == 1, "rows of several lengths"
        for run in self._runs:
            for name, given in inputs.items():
                arena = run.arena
                self._write(run.of(arena.inputs, name, given, arena.width, filler_of(name)), run, given, 0)
        return {name: given if self._is_fresh else self._known(name) for name, given in inputs.items()}

    def update(self, block: Hashable, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As in a `KVCache`; where the rows are no neighbours, a copy. `keys_of_rows` makes none."""
        parts = self.keys_of_rows(block, keys, values)
        width = max(part.keys.shape[2] for part in parts)
        if len(parts) == 1:
            return parts[0].keys, parts[0].values
        return (
            torch.cat([pad_right(part.keys, width, dim=2) for part in parts]),
            torch.cat([pad_right(part.values, width, dim=2) for part in parts]),
        )

    def keys_of_rows(self, block: Hashable, keys: torch.Tensor, values: torch.Tensor) -> list[KeysOfRows]:
        """The same as views: those of some rows after those of others."""
        if self._is_fresh:
            self.cache.prefix_length = keys.shape[2] - self._new
        prefix, parts = self.cache.prefix_length, [KeysOfRows(slice(None), keys, values)] if self._is_fresh else []
        for run in self._runs:
            arena, width = run.arena, prefix + max(run.starts) + self._new
            own_keys = run.of(arena.keys, block, keys, prefix + arena.width)
            own_values = run.of(arena.values, block, values, prefix + arena.width)
            self._write(own_keys, run, keys, prefix)
            self._write(own_values, run, values, prefix)
            if not self._is_fresh:
                parts.append(KeysOfRows(run.rows, own_keys.narrow(2, 0, width), own_values.narrow(2, 0, width)))
        return parts

    def set_cross_attention(self, block: Hashable, *tensors: torch.Tensor, prefix: int = 0) -> None:
        """As in a `KVCache`."""
        for run in self._runs:
            for number, tensor in enumerate(tensors):
                room = run.arena.room(run.arena.cross, (block, number), tensor, prefix + run.arena.encoder_width)
                room[run.places].narrow(2, 0, tensor.shape[2]).copy_(tensor[run.rows])

    def cross_attention(self, block: Hashable) -> list[KeysOfRows]:
        """Keys and values of an encoder's text; there are more of them than a mask may know."""
        return [
            KeysOfRows(run.rows, *(run.arena.cross[block, number][run.places] for number in range(2)))
            for run in self._runs
        ]

    def _known(self, name: str) -> torch.Tensor:
        width = self.length + self._new
        return torch.cat(
            [pad_right(run.arena.inputs[name][run.places, :width], width, dim=1, name=name) for run in self._runs]
        )

    def _write(self, room: torch.Tensor, run: _Run, given: torch.Tensor, prefix: int) -> None:
        """Put the entries of a run's rows, `[rows, positions]` or `[rows, heads, positions, size]`, into the room of
        their slots; prefix: columns before the first position.
        """
        own, dim = given[run.rows], 1 if given.dim() == 2 else 2
        if self._counts is not None:
            for place, row, count in zip(room, own, self._counts[run.rows], strict=True):
                place.narrow(dim - 1, 0, prefix + count).copy_(row.narrow(dim - 1, 0, prefix + count))
        elif self._is_fresh:
            room.narrow(dim, 0, own.shape[dim]).copy_(own)
        elif len(set(run.starts)) == 1:
            room.narrow(dim, prefix + run.starts[0], self._new).copy_(own)
        else:
            if run.cells is None:
                starts = to_device({"starts": torch.tensor(run.starts)}, own.device)["starts"]
                run.cells = torch.arange(len(own), device=own.device), starts
            rows, columns = run.cells
            if dim == 1:
                room[rows, columns] = own[:, 0]
            else:
                room[rows, :, columns if prefix == 0 else columns + prefix] = own[:, :, 0]


def _runs_of(slots: Sequence[Slot]) -> list[_Run]:
    assert all(one.order < other.order for one, other in pairwise(slots)), "slots stand in their order"
    runs, first = [], 0
    for _, some in groupby(enumerate(slots), key=lambda pair: (pair[1].arena.number, pair[1].place - pair[0])):
        run = [slot for _, slot in some]
        places = slice(run[0].place, run[-1].place + 1)
        rows = slice(first, first := first + len(run))
        runs.append(_Run(rows, run[0].arena, places, [slot.length for slot in run]))
    return runs
