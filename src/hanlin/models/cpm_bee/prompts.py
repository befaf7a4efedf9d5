"""Where a CPM-Bee answer stands while it is written, and which ids of the logits a prompt's own strings have.

A record may have several answers. Each is written in its own segment, from <s> at position 0 to </s>; after the last
</s> the cursor is done. Id `vocab_size` + j of the logits is entry j of the prompt's table of (token, sub).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .record import Path

Entry = tuple[int, int]
"""A token that is not in the vocabulary: the token that stands in for it, and its number among those of its kind."""


@dataclass(frozen=True)
class Slots:
    """The answers of one prompt and what its ids stand for.

    segments: of each answer, in the order of writing; entries: (token, sub) of the ids from `vocab_size` on.
    """

    segments: tuple[int, ...]
    num_segments: int
    vocab_size: int
    start: int
    end: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class BeeCursor:
    """The next position to feed: `token`, `sub` at `position` of answer number `slot`."""

    slots: Slots
    token: int
    sub: int = 0
    position: int = 0
    slot: int = 0

    @property
    def is_done(self) -> bool:
        return self.slot == len(self.slots.segments)

    def inputs(self) -> dict[str, int]:
        """The next position's arguments; a cursor that is done gives one of its last answer, for padding beams."""
        # kept: what is generated is fed as context, so only the positions keep it causal (golden bee_generate).
        return {
            "tokens": self.token,
            "subs": self.sub,
            "positions": self.position,
            "segments": self.slots.segments[min(self.slot, len(self.slots.segments) - 1)],
            "is_context": 1,
            "sample_ids": 0,
            "num_segments": self.slots.num_segments,
            "relation_offsets": 0,
        }

    def advance(self, token: int) -> BeeCursor:
        assert not self.is_done, "the last answer has ended"
        slots = self.slots
        if token == slots.end:
            return BeeCursor(slots, slots.start, slot=self.slot + 1)
        base, sub = slots.entries[token - slots.vocab_size] if token >= slots.vocab_size else (token, 0)
        return BeeCursor(slots, base, sub, self.position + 1, self.slot)


@dataclass(frozen=True)
class PromptState:
    """What is needed to write a prompt's answers and to put them back.

    slots: where they are written; paths: where they belong in the record; by_id: the record's strings that an answer
    may quote, by id of the logits.
    """

    slots: Slots
    paths: tuple[Path, ...]
    by_id: dict[int, str]


def first_cursor(slots: Slots) -> BeeCursor:
    """The cursor before the first token of the first answer."""
    return BeeCursor(slots, slots.start)


def strings_by_id(strings: dict[Entry, str], entries: Sequence[Entry], vocab_size: int) -> dict[int, str]:
    """The string of each id: that of its entry, or of the plain token for sub 0."""
    place = {entry: vocab_size + i for i, entry in enumerate(entries)}
    return {place[entry] if entry[1] else entry[0]: text for entry, text in strings.items()}


def split_answers(tokens: Sequence[int], end: int) -> list[list[int]]:
    """The tokens of each answer that was begun, without their ends."""
    answers: list[list[int]] = []
    is_open = False
    for token in tokens:
        if not is_open:
            answers.append([])
        is_open = token != end
        if is_open:
            answers[-1].append(token)
    return answers
