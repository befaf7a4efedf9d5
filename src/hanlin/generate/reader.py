"""A model with what it has read: of several prompts and their answers, a slot of the KV cache for each open beam.

Where the family says that no position sees a later one (`Family.is_causal`), a prompt may be read in pieces, and what
was read of another one that begins alike is taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from hanlin.core.batch import Cursor, PromptBatch
from hanlin.core.transfer import to_device
from hanlin.layers.kv_cache import pad_right
from hanlin.layers.lora import AdapterRows
from hanlin.layers.slot_cache import Budget, Slot, SlotCache, SlotView

from .beam import Beam
from .blame import Blame
from .known_prompts import KnownPrompts, Positions, positions_of, shared_beginning

_ROOM_TO_GROW = 64
"""Positions behind a prompt that are made at once where nothing bounds the cache: most answers are short."""


class BeamRow(NamedTuple):
    """A row of a step's batch: the number of its prompt, and the beam that it feeds."""

    record: int
    beam: Beam


class Room(NamedTuple):
    """What a question needs: at most so many beams, positions of its prompt and of its answer, those of an encoder; and
    the adapter that it is for.
    """

    beams: int
    prompt: int
    answer: int
    encoder: int = 0
    adapter: str = ""


@dataclass(eq=False)
class _Held:
    """A prompt and its answer, by their number. slots: of the open beams; spare: for those to come; constant: inputs of
    the whole record `[1, any]`; unread: inputs of the prompt's positions that are still to be read `[1, any]`;
    positions: all of them, noted only where they may serve another prompt.
    """

    number: int
    room: Room
    slots: list[Slot]
    spare: list[Slot]
    constant: dict[str, torch.Tensor]
    unread: dict[str, torch.Tensor] | None = None
    positions: Positions = field(default_factory=list)


class Reader:
    """Reads prompts, whole or in pieces, and then a position of each open beam at each step."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        budget: Budget | None = None,
        kept: int = 0,
        adapters: AdapterRows | None = None,
    ) -> None:
        """budget: of all positions together; kept: prompts at most that are remembered when they are done; adapters:
        of the model, where rows may have different ones.
        """
        self._model, self._device, self._adapters = model, device, adapters
        self._cache = SlotCache(budget)
        self._known = KnownPrompts(self._cache, kept)
        self._held: dict[int, _Held] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._stacked: tuple[list[int], dict[str, torch.Tensor]] = ([], {})

    @property
    def numbers(self) -> list[int]:
        """Of the prompts that were read, in the order of their slots."""
        read = [number for number, held in self._held.items() if held.unread is None]
        return sorted(read, key=lambda number: self._held[number].slots[0].order)

    @property
    def positions(self) -> int:
        """Taken by open answers."""
        slots = (slot for held in self._held.values() for slot in (*held.slots, *held.spare))
        return sum(slot.arena.width + slot.arena.encoder_width for slot in slots)

    def cost(self, rooms: Sequence[Room]) -> int:
        """Positions that questions take of the cache."""
        return sum(room.beams * sum(self._widths(room)) for room in rooms)

    def open(self, numbers: Sequence[int], batch: PromptBatch, rooms: Sequence[Room]) -> bool:
        """Read prompts in one go, as they stand in a batch, those that are the same once; False where there is no room
        for them. Where it raises, some may be held.
        """
        prompt, constant = self._inputs_of_prompts(batch)
        length, encoder = prompt["tokens"].shape[1], constant.get("encoder_tokens")
        encoder_length = 0 if encoder is None else encoder.shape[1]
        if not self._take(numbers, [room._replace(prompt=length, encoder=encoder_length) for room in rooms]):
            return False
        for place, number in enumerate(numbers):
            self._held[number].constant = {name: tensor[place : place + 1] for name, tensor in constant.items()}
        held, firsts = [self._held[number] for number in numbers], _firsts_alike(batch, rooms)
        read = [place for place, first in enumerate(firsts) if place == first]
        only = {name: tensor[read] for name, tensor in prompt.items()}
        constant = {name: tensor[read] for name, tensor in constant.items()}
        self._call([held[place] for place in read], [held[place].slots[0] for place in read], only, constant)
        for one, first in zip(held, firsts, strict=True):
            if one is not held[first]:
                self._cache.copy(one.slots[0], held[first].slots[0], length)
        return True

    def open_unread(self, number: int, batch: PromptBatch, room: Room) -> bool:
        """Take in a single prompt of a causal model; `read_some` reads it. False where there is no room for it."""
        prompt, constant = self._inputs_of_prompts(batch)
        wanted = positions_of(batch.inputs, room.adapter) if self._known.limit else []
        self._known.find(wanted)  # it should not be forgotten for this one
        if not self._take([number], [room]):
            return False
        held = self._held[number]
        held.constant, held.positions, held.unread = constant, wanted, prompt
        return True

    def read_some(self, most: int | None, blame: Blame) -> None:
        """Read on in the prompts that are not read, at most so many positions; None: all."""
        left = most
        while True:
            for held in self._held.values():
                with blame.of(held.number):
                    self._recall(held)
            unread = [held for held in self._held.values() if held.unread is not None]
            waiting = [held for held in unread if held.number not in blame.failures]
            if not waiting or (left is not None and left <= 0):
                return
            some = _that_fit(waiting, left)
            width = max(_length(held) for held in some)
            width = width if left is None else min(width, left)
            for _ in blame.each(some, lambda held: held.number, partial(self._read_pieces, most=width)):
                pass
            if left is not None:
                left -= width * len(some)

    def follow(self, rows: Sequence[BeamRow]) -> None:
        """Give each beam the slot of the one of the step before that it goes on from (its `parent`), or a copy where
        several go on from one.
        """
        parents: dict[int, list[int]] = {}
        for row in rows:
            parents.setdefault(row.record, []).append(row.beam.parent)
        for number, own in parents.items():
            held = self._held[number]
            free = [*held.spare, *(slot for place, slot in enumerate(held.slots) if place not in own)]
            slots: list[Slot] = []
            for place in own:
                slot = held.slots[place]
                if slot in slots:
                    slot = free.pop()
                    self._cache.copy(slot, held.slots[place], held.slots[place].length)
                slots.append(slot)
            held.slots, held.spare = slots, free
        self._grow([self._held[number] for number in parents])

    def read(self, rows: Sequence[BeamRow]) -> torch.Tensor:
        """Feed the next position of every row, after `follow`; logits `[batch, vocab]`, at least fp32. Where it raises,
        nothing is read.

        rows: all open beams of some prompts, those of a prompt together.
        """
        slots = [slot for number in dict.fromkeys(row.record for row in rows) for slot in self._held[number].slots]
        order = sorted(range(len(rows)), key=lambda place: slots[place].order)
        rows = [rows[place] for place in order]
        inputs = self._inputs_at([[row.beam.cursor] for row in rows])
        held = [self._held[row.record] for row in rows]
        logits = self._call(held, [slots[place] for place in order], inputs, self._constant_of(rows))[:, -1]
        for row in rows:
            self._note_positions(row.record, [row.beam.cursor])
        if order != list(range(len(rows))):
            logits = logits[to_device({"order": torch.tensor(order).argsort()}, logits.device)["order"]]
        return logits if logits.dtype == torch.float64 else logits.float()

    def room_ahead(self, number: int) -> int:
        """Positions behind the next one for which the slot of a prompt's only beam has room."""
        [slot] = self._held[number].slots
        return slot.arena.width - slot.length - 1

    def read_ahead(self, row: BeamRow, guesses: Sequence[Cursor]) -> torch.Tensor:
        """`read` for the only beam of a prompt of a causal model, and for positions that may follow; logits `[1 +
        guesses, vocab]`. `keep` has to say next how many of them hold.
        """
        held = self._held[row.record]
        cursors = [row.beam.cursor, *guesses]
        inputs = self._inputs_at([cursors])
        logits = self._call([held], held.slots, inputs, self._constant_of([row]), logits_to_keep=len(cursors))[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    def keep(self, row: BeamRow, cursors: Sequence[Cursor], read: int) -> None:
        """Of so many positions that were read ahead with a row only these hold."""
        held = self._held[row.record]
        [slot] = held.slots
        if len(cursors) < read:
            self._cache.cut(slot, slot.length - read + len(cursors))
        self._note_positions(row.record, cursors)

    def drop(self, number: int, *, is_kept: bool = True) -> None:
        """Let go of a prompt; what was read of it is remembered if it may serve another one, unless it is not to be."""
        held = self._held.pop(number, None)
        if held is None:
            return
        self._cache.give_back(held.spare)
        first, *others = held.slots
        self._cache.give_back(others)
        is_kept = is_kept and not others and not held.spare
        self._known.keep(first, held.positions[: first.length] if is_kept else [])

    def close(self) -> None:
        """Let go of everything, after which nothing is read any more."""
        self._held.clear()
        self._cache.close()

    # --- calls of the model ---

    def _recall(self, held: _Held) -> None:
        """Take what is known of a prompt of which nothing is read."""
        if held.unread is None or held.slots[0].length or not held.positions:
            return
        # What several beams have read is not noted by beam.
        alone = (one for one in self._held.values() if one is not held and one.room.beams == 1)
        others = [(one.slots[0], one.positions) for one in alone]
        source, length = self._known.find(held.positions, others)
        if source is not None:
            self._cache.copy(held.slots[0], source, length)
            rest = {name: tensor[:, length:] for name, tensor in held.unread.items()}
            held.unread = rest if next(iter(rest.values())).shape[1] else None

    def _read_pieces(self, some: Sequence[_Held], most: int) -> None:
        """Read the next positions of prompts, at most so many of each."""
        some = sorted(some, key=lambda held: held.slots[0].order)
        pieces = [{name: tensor[:, :most] for name, tensor in (held.unread or {}).items()} for held in some]
        counts = [next(iter(piece.values())).shape[1] for piece in pieces]
        inputs = {name: _stack([piece[name] for piece in pieces], name) for name in pieces[0]}
        constant = {name: _stack([held.constant[name] for held in some], name) for name in some[0].constant}
        self._call(some, [held.slots[0] for held in some], inputs, constant, counts if len(some) > 1 else None)
        for held, count in zip(some, counts, strict=True):
            rest = {name: tensor[:, count:] for name, tensor in (held.unread or {}).items()}
            held.unread = rest if next(iter(rest.values())).shape[1] else None

    def _call(
        self,
        held: Sequence[_Held],
        slots: Sequence[Slot],
        inputs: Mapping[str, torch.Tensor],
        constant: Mapping[str, torch.Tensor],
        counts: Sequence[int] | None = None,
        *,
        logits_to_keep: int = 1,
    ) -> torch.Tensor:
        """held: the prompt of each row."""
        view = SlotView(self._cache, slots, counts)
        adapters = self._adapters
        by_row = nullcontext() if adapters is None else adapters.of([one.room.adapter for one in held], self._device)
        with by_row:
            logits = self._model(**inputs, **constant, kv_cache=view, logits_to_keep=logits_to_keep)
        view.commit()
        return logits

    def _inputs_of_prompts(self, batch: PromptBatch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Those of positions, and those of whole records (a relation table), which go along with every step."""
        given = to_device(batch.inputs, self._device)
        self._dtypes = {name: tensor.dtype for name, tensor in given.items()}
        names = batch.cursors[0].inputs()
        return (
            {name: tensor for name, tensor in given.items() if name in names},
            {name: tensor for name, tensor in given.items() if name not in names},
        )

    def _inputs_at(self, rows: Sequence[Sequence[Cursor]]) -> dict[str, torch.Tensor]:
        """Those of the next positions of each row."""
        inputs = [[cursor.inputs() for cursor in row] for row in rows]
        dtypes = {name: self._dtypes.get(name, torch.int64) for name in inputs[0][0]}
        given = {
            name: torch.tensor([[one[name] for one in row] for row in inputs], dtype=dtype)
            for name, dtype in dtypes.items()
        }
        return to_device(given, self._device)

    def _note_positions(self, number: int, cursors: Sequence[Cursor]) -> None:
        if (held := self._held[number]).positions:
            for cursor in cursors:
                values = (value for _, value in sorted(cursor.inputs().items()))
                held.positions.append((held.room.adapter, *values))

    def _constant_of(self, rows: Sequence[BeamRow]) -> dict[str, torch.Tensor]:
        records = [row.record for row in rows]
        if records != self._stacked[0]:
            held = [self._held[record].constant for record in records]
            self._stacked = records, {name: _stack([one[name] for one in held], name) for name in held[0]}
        return self._stacked[1]

    # --- slots ---

    def _widths(self, room: Room) -> tuple[int, int]:
        answer = room.answer if self._cache.budget else min(room.answer, _ROOM_TO_GROW)
        return self._cache.width_for(room.prompt + answer), self._cache.width_for(room.encoder) if room.encoder else 0

    def _take(self, numbers: Sequence[int], rooms: Sequence[Room]) -> bool:
        """Slots for prompts of one width, for which what is only remembered is forgotten."""
        [widths] = {self._widths(room) for room in rooms}
        while (slots := self._cache.take(sum(room.beams for room in rooms), *widths)) is None:
            if not self._known.forget_oldest() and not self._cache.ask_others():
                return False
        for number, room in zip(numbers, rooms, strict=True):
            first, *spare = slots[: room.beams]
            self._held[number] = _Held(number, room, [first], spare, {})
            slots = slots[room.beams :]
        return True

    def _grow(self, some: Sequence[_Held]) -> None:
        """Move those whose slots are full into wider ones; there are none where the cache is bounded."""
        full = [held for held in some if held.slots[0].length == held.slots[0].arena.width]
        for widths in sorted({(held.slots[0].arena.width, held.slots[0].arena.encoder_width) for held in full}):
            own = [held for held in full if (held.slots[0].arena.width, held.slots[0].arena.encoder_width) == widths]
            new = self._cache.take(sum(held.room.beams for held in own), 2 * widths[0], widths[1])
            assert new is not None, "a bounded cache has all room from the start"
            for held in own:
                mine, new = new[: held.room.beams], new[held.room.beams :]
                for old, slot in zip(held.slots, mine, strict=False):
                    self._cache.copy(slot, old, old.length)
                self._cache.give_back([*held.slots, *held.spare])
                held.slots, held.spare = mine[: len(held.slots)], mine[len(held.slots) :]


def _length(held: _Held) -> int:
    return 0 if held.unread is None else next(iter(held.unread.values())).shape[1]


def _that_fit(waiting: Sequence[_Held], most: int | None) -> list[_Held]:
    """The first of some prompts, and those of the others that can be read with it: from their beginning, nearly as
    long, not alike (they need not be read then), together at most so many positions.
    """
    first = waiting[0]
    some, width = [first], _length(first)
    if first.slots[0].length or (most is not None and width > most):
        return some
    for held in waiting[1:]:
        length = _length(held)
        is_alike = any(shared_beginning(one.positions, held.positions) for one in some if one.positions)
        if held.slots[0].length or is_alike or not width / 2 <= length <= 2 * width:
            continue
        wider = max(width, length)
        if most is not None and wider * (len(some) + 1) > most:
            break
        some.append(held)
        width = wider
    return some


def _firsts_alike(batch: PromptBatch, rooms: Sequence[Room]) -> list[int]:
    """For each row of a batch the first one that reads the same with the same adapter: several answers to a prompt."""
    firsts: dict[tuple[Any, ...], int] = {}
    rows = [
        (room.adapter, *(tensor[place].numpy().tobytes() for tensor in batch.inputs.values()))
        for place, room in enumerate(rooms)
    ]
    return [firsts.setdefault(row, place) for place, row in enumerate(rows)]


def _stack(rows: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """`[1, any]` each, the shorter ones padded on the right."""
    length = max(row.shape[1] for row in rows)
    return torch.cat([pad_right(row, length, dim=1, name=name) for row in rows])
