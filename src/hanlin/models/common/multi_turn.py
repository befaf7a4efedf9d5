"""Every answer of a dialogue in one sample, with the loss that one sample per answer would have.

A sample per answer reads the dialogue up to that answer, so the first question is read as often as there are answers.
Here what they have in common is read once. The trunk is the sample of the last answer; an earlier answer's sample
follows it as far as the ids are the same. Where they end to be, because a tokenizer gives an answer other ids inside of
a longer text than on its own, the rest becomes a branch: it stands behind the trunk, has the positions that it would
have had, and sees of the trunk only what stands before it there. So each label sees exactly the ids that it saw in a
sample of its own (tests/models/common/test_multi_turn.py compares the losses).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hanlin.core.batch import IGNORED, Sample

__all__ = ["LearnedTurn", "sample_of_turns", "shown_ids"]


@dataclass(frozen=True)
class LearnedTurn:
    """All ids before an answer, the answer's, and what is learned behind it; None: nothing, since it was cut."""

    prompt: Sequence[int]
    answer: Sequence[int]
    end: int | None

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer]

    def labels(self) -> Iterator[tuple[int, int]]:
        """Positions, and what is learned at each: the next id, and the end at the last."""
        learned = [*self.answer, *([] if self.end is None else [self.end])]
        yield from enumerate(learned, start=len(self.prompt) - 1)


def sample_of_turns(turns: Sequence[LearnedTurn]) -> Sample:
    """One sample of all answers; turns: in the order of the dialogue, which the last one holds whole.

    Its inputs are `tokens` alone where there is no branch, else `positions` and `branches` too: of each position the
    place of the first one of its branch, 0 in the trunk.
    """
    last = turns[-1]
    trunk = [*last.ids, *([] if last.end is None else [last.end])]
    tokens, positions, branches = list(trunk), list(range(len(trunk))), [0] * len(trunk)
    labels = dict(last.labels())
    for turn in turns[:-1]:
        ids, begin = turn.ids, len(tokens)
        fork = _shared(ids, trunk)
        if any(place < fork and place in labels for place, _ in turn.labels()):
            fork = len(turn.prompt) - 1  # two answers behind the same ids: each gets places of its own
        tokens += ids[fork:]
        positions += range(fork, len(ids))
        branches += [begin] * (len(ids) - fork)
        for place, label in turn.labels():
            labels[place if place < fork else begin + place - fork] = label
    all_labels = np.full(len(tokens), IGNORED, dtype=np.int32)
    all_labels[list(labels)] = list(labels.values())
    inputs = {"tokens": np.array(tokens, np.int32)}
    if any(branches):
        inputs |= {"positions": np.array(positions, np.int32), "branches": np.array(branches, np.int32)}
    return Sample(inputs, all_labels, (all_labels != IGNORED).astype(np.float32))


def shown_ids(sample: Sample, ends: Container[int]) -> list[tuple[int, bool]]:
    """The ids of a sample in the order of the dialogue, and whether each is learned.

    A branch stands behind what it sees of the trunk; an end (one of `ends`) that is learned where another id follows
    stands there too.
    """
    tokens, labels = sample.inputs["tokens"].tolist(), sample.labels.tolist()
    places = np.arange(len(tokens))
    branches = sample.inputs.get("branches", np.zeros_like(places))
    positions = sample.inputs.get("positions", places)
    is_first = (branches == places) & (branches > 0)
    before = np.where(is_first, positions - 1, places - 1).tolist()
    forks = np.where(branches > 0, positions[branches], positions)
    shown = []
    for at in np.lexsort((places, branches == 0, forks)).tolist():
        label = IGNORED if before[at] < 0 else labels[before[at]]
        is_other = label != tokens[at] and (label in ends or branches.any())
        shown.append((tokens[at], label != IGNORED and not is_other))
        goes_on = at + 1 < len(tokens) and branches[at + 1] == branches[at]
        if labels[at] in ends and not (goes_on and tokens[at + 1] == labels[at]):
            shown.append((labels[at], True))
    return shown


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
