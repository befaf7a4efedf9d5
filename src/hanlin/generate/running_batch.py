"""Answers that are written together: questions join and leave the batch after any step (continuous batching).

A question that joins has slots of its own in the KV cache; its prompt is read at once, or in pieces beside the steps
of the others. What each of them wants (method, temperature, penalties) is its own. An answer does not depend on
the others (up to floating-point rounding): nothing of them is visible to it, and it draws from its own random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from hanlin.core.batch import Prompt
from hanlin.layers.slot_cache import Budget
from hanlin.models.family import BeamVariant, Processor
from hanlin.recipe.settings import GenerateSettings

from .beam import BeamRules, Candidate, Search, advance, best_candidates, start_search
from .method import GenerateMethod, find_method
from .reader import BeamRow, Reader, Room
from .sampling import add_bias, ban_ids, check_numbers, penalise_counts, penalise_used


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt, and how its answer is looked for. stream: its random numbers, read by sampling only; trace: where to
    note how likely each token was, of an answer of one beam; top: so many likeliest ids are noted beside it; bias: what
    is added to the logits of ids before anything else.
    """

    prompt: Prompt
    options: GenerateSettings
    stream: np.random.Generator | None = None
    trace: list[TokenScores] | None = None
    top: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)


class TokenScores(NamedTuple):
    """A token with its log probability, and the likeliest ids with theirs, before any bias and penalty."""

    token: int
    score: float
    likeliest: list[tuple[int, float]]


@dataclass(frozen=True)
class _Open:
    """A question whose answer is being written; banned: ids of the logits that it must not use."""

    question: AnswerRequest
    method: GenerateMethod
    rules: BeamRules
    banned: Sequence[int]
    search: Search


@dataclass(frozen=True)
class BatchLimits:
    """budget: of positions of the KV cache, which several batches may share; prompt_tokens: that are read in one step,
    beside the answers; None: no limit; kept: prompts and answers at most that are remembered, for others that begin
    alike. The last two are for causal models alone; others read each prompt at once.
    """

    budget: Budget | None = None
    prompt_tokens: int | None = None
    kept: int = 0


class RunningBatch:
    """Questions by number, with the state of their searches."""

    def __init__(
        self,
        model: nn.Module,
        processor: Processor,
        device: torch.device,
        variant: BeamVariant,
        *,
        is_causal: bool = False,
        limits: BatchLimits | None = None,
    ) -> None:
        """is_causal: whether no position sees a later one (`Family.is_causal`)."""
        self._processor, self._variant = processor, variant
        self._limits = limits = limits or BatchLimits()
        self.reads_in_pieces = is_causal and (limits.prompt_tokens is not None or limits.kept > 0)
        """Whether `add` leaves the reading to `step`."""
        self._open: dict[int, _Open] = {}
        self._reader = Reader(model, device, limits.budget, limits.kept)

    @property
    def is_empty(self) -> bool:
        return not self._open

    @property
    def positions(self) -> int:
        """Of the KV cache, taken by the questions that are open."""
        return self._reader.positions

    def cost(self, questions: Sequence[AnswerRequest]) -> int:
        """Positions of the KV cache that questions take when they are added."""
        return self._reader.cost(self._rooms(questions))

    def add(self, numbers: Iterable[int], questions: Sequence[AnswerRequest]) -> dict[int, Search] | None:
        """Let questions join, and read their prompts; returns where their searches begin, None where there is no room
        for all of them.

        numbers: their names in this batch, new ones.
        """
        numbers, rooms = list(numbers), self._rooms(questions)
        assert not self._open.keys() & set(numbers), "these numbers are taken"
        if not self.reads_in_pieces:
            batches = [self._processor.collate_prompts([question.prompt for question in questions])]
            has_room = self._reader.open(numbers, batches[0], rooms)
        else:
            batches = [self._processor.collate_prompts([question.prompt]) for question in questions]
            has_room = all(map(self._reader.open_unread, numbers, batches, rooms))
        if not has_room:
            for number in numbers:
                self._reader.drop(number)
            return None
        cursors = [cursor for batch in batches for cursor in batch.cursors]
        banned = [ids for batch in batches for ids in batch.banned]
        longest = max(question.prompt.length for question in questions)
        opened = {}
        for number, question, cursor, ids in zip(numbers, questions, cursors, banned, strict=True):
            method, options = find_method(question.options), question.options
            rules = BeamRules(method.num_beams(options), options.max_new_tokens, variant=self._variant)
            is_padded = not self.reads_in_pieces and method.counts_padding(options)
            length = 1 + (longest if is_padded else question.prompt.length)
            opened[number] = _Open(question, method, rules, ids, start_search(cursor, length))
        self._open |= opened
        return {number: one.search for number, one in opened.items()}

    def drop(self, number: int) -> None:
        """Forget a question; its place is free at once."""
        if self._open.pop(number, None) is not None:
            self._reader.drop(number)

    def close(self) -> None:
        """Let go of all that is held; the batch is used up."""
        self._open.clear()
        self._reader.close()

    def step(self) -> dict[int, Search]:
        """Read on in prompts, and write a token of each open answer whose prompt is read; the searches after it by
        number, those that are done for the last time.

        Raises: HanlinError when the model yields no numbers.
        """
        self._reader.read_some(self._limits.prompt_tokens)
        rows = [BeamRow(number, beam) for number in self._reader.numbers for beam in self._open[number].search.beams]
        if not rows:
            return {}
        logits = self._reader.read(rows)
        searches = {}
        for number, best_first in self._choose(logits, rows).items():
            one = self._open[number]
            search = searches[number] = advance(one.search, best_first, one.rules)
            if search.is_done:
                self.drop(number)
            else:
                self._open[number] = _Open(one.question, one.method, one.rules, one.banned, search)
        return searches

    def _rooms(self, questions: Sequence[AnswerRequest]) -> list[Room]:
        """Those of questions that are read in one go are equally large."""
        rooms = [
            Room(
                find_method(question.options).num_beams(question.options),
                max(1, question.prompt.length),
                question.options.max_new_tokens,
                question.prompt.size - question.prompt.length,
            )
            for question in questions
        ]
        if self.reads_in_pieces:
            return rooms
        most = [max(sizes) for sizes in zip(*rooms, strict=True)][1:]
        return [Room(room.beams, *most) for room in rooms]

    def _choose(self, logits: torch.Tensor, rows: Sequence[BeamRow]) -> dict[int, list[Candidate]]:
        """For each open question its candidates, best first.

        Raises: HanlinError when the logits are not numbers.
        """
        logits = ban_ids(logits, [self._open[row.record].banned for row in rows])
        candidates: dict[int, list[Candidate]] = {}
        for options, places in self._by_options(rows):
            alike = [rows[place] for place in places]
            own = logits if len(places) == len(rows) else logits[torch.tensor(places, device=logits.device)]
            own = add_bias(own, [self._open[row.record].question.bias for row in alike])
            candidates |= self._choose_alike(_penalise(own, alike, options), alike, options)
        self._note(logits, rows, candidates)
        return candidates

    def _note(self, logits: torch.Tensor, rows: Sequence[BeamRow], candidates: Mapping[int, list[Candidate]]) -> None:
        """Write down how likely the chosen tokens are, for those who asked."""
        for place, row in enumerate(rows):
            question = self._open[row.record].question
            if question.trace is None:
                continue
            scores = logits[place].log_softmax(dim=-1)
            top = scores.topk(min(question.top, len(scores)))
            token = candidates[row.record][0].token
            pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            question.trace.append(TokenScores(token, float(scores[token]), pairs))

    def _by_options(self, rows: Sequence[BeamRow]) -> list[tuple[GenerateSettings, list[int]]]:
        """Rows whose answers are looked for in the same way: their places."""
        groups: list[tuple[GenerateSettings, list[int]]] = []
        for place, row in enumerate(rows):
            options = self._open[row.record].question.options
            own = next((places for known, places in groups if known is options or known == options), None)
            if own is None:
                groups.append((options, [place]))
            else:
                own.append(place)
        return groups

    def _choose_alike(
        self, logits: torch.Tensor, rows: Sequence[BeamRow], options: GenerateSettings
    ) -> dict[int, list[Candidate]]:
        scores = logits.log_softmax(dim=-1)
        streams = [self._open[row.record].question.stream for row in rows]
        drawn = [stream for stream in streams if stream is not None]
        tokens = find_method(options).propose(logits, scores, options, drawn)
        # In one table, so that the device is waited for once; a float holds every id.
        peaks, own = scores.amax(dim=-1, keepdim=True), scores.gather(-1, tokens)
        table = torch.cat([peaks, own, tokens.to(own.dtype)], dim=-1).cpu()
        peaks, own, ids = table.split([1, tokens.shape[1], tokens.shape[1]], dim=-1)
        check_numbers(peaks)
        sums = own + torch.tensor([[row.beam.score] for row in rows], dtype=own.dtype)
        return _by_record(rows, ids.long().tolist(), sums.tolist())


def _penalise(logits: torch.Tensor, rows: Sequence[BeamRow], options: GenerateSettings) -> torch.Tensor:
    # kept (bee_generate): what counts is the id fed, so the third option counts as a bare "<option>".
    window = options.repetition_window or 0
    logits = penalise_used(logits, [row.beam.fed[-window:] for row in rows], options.repetition_penalty)
    return penalise_counts(
        logits,
        [row.beam.tokens for row in rows],
        presence=options.presence_penalty,
        frequency=options.frequency_penalty,
    )


def _by_record(rows: Sequence[BeamRow], tokens: list[list[int]], sums: list[list[float]]) -> dict[int, list[Candidate]]:
    own: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        own.setdefault(row.record, []).append(place)
    candidates = {}
    for record, places in own.items():
        count = max(len(tokens[place]) for place in places)
        candidates[record] = best_candidates([tokens[n] for n in places], [sums[n] for n in places], count)
    return candidates
