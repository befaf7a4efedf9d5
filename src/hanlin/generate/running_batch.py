"""Answers that are written together: questions join and leave the batch after any step (continuous batching).

A question that joins has slots of its own in the KV cache; its prompt is read at once, or in pieces beside the steps
of the others. What each of them wants (method, temperature, penalties) is its own. An answer does not depend on
the others (up to floating-point rounding): nothing of them is visible to it, and it draws from its own random numbers.
So does what goes wrong with one of them: its search ends with the failure, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from hanlin.core.batch import Cursor, Prompt
from hanlin.layers.lora import AdapterRows
from hanlin.layers.slot_cache import Budget
from hanlin.models.family import BeamVariant, Processor
from hanlin.recipe.settings import GenerateSettings

from .beam import BeamRules, Candidate, Search, advance, best_candidates, start_search
from .blame import Blame
from .lookup import FIRST_COUNT, guess_next, next_count
from .method import GenerateMethod, find_method
from .reader import BeamRow, Reader, Room
from .sampling import BANNED, add_bias, ban_ids, no_numbers, penalise_counts, penalise_used


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt, and how its answer is looked for. stream: its random numbers, read by sampling only; trace: where to
    note how likely each token was, of an answer of one beam; top: so many likeliest ids are noted beside it; bias: what
    is added to the logits of ids before anything else; adapter: of the model, where it has several (`Engine.adapters`);
    empty: the base; by_token: each token is to be seen before the next one is written, so none is guessed ahead.
    """

    prompt: Prompt
    options: GenerateSettings
    stream: np.random.Generator | None = None
    trace: list[TokenScores] | None = None
    top: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    adapter: str = ""
    by_token: bool = False


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
    alike. These two are for causal models alone; others read each prompt at once. finds_guilty: whether an error in
    what is computed of several questions is looked for by computing each alone, so that only the guilty one fails; else
    `step` raises it.
    """

    budget: Budget | None = None
    prompt_tokens: int | None = None
    kept: int = 0
    finds_guilty: bool = False


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
        adapters: AdapterRows | None = None,
    ) -> None:
        """is_causal: whether no position sees a later one (`Family.is_causal`); adapters: of the model, by row."""
        self._processor, self._variant = processor, variant
        self._limits = limits = limits or BatchLimits()
        self.reads_in_pieces = is_causal and (limits.prompt_tokens is not None or limits.kept > 0)
        """Whether `add` leaves the reading to `step`."""
        self._is_causal = is_causal
        self._open: dict[int, _Open] = {}
        self._to_guess = FIRST_COUNT
        self._reader = Reader(model, device, limits.budget, limits.kept, adapters)

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
        for all of them. Where it raises, none of them is held.

        numbers: their names in this batch, new ones.
        """
        numbers = list(numbers)
        assert not self._open.keys() & set(numbers), "these numbers are taken"
        opened: dict[int, _Open] | None = None
        try:
            opened = self._opened(numbers, questions)
        finally:
            if opened is None:
                for number in numbers:
                    self._reader.drop(number)
        if opened is None:
            return None
        self._open |= opened
        return {number: one.search for number, one in opened.items()}

    def _opened(self, numbers: Sequence[int], questions: Sequence[AnswerRequest]) -> dict[int, _Open] | None:
        """None where there is no room for all of them; some may be held then."""
        rooms = self._rooms(questions)
        if not self.reads_in_pieces:
            batches = [self._processor.collate_prompts([question.prompt for question in questions])]
            has_room = self._reader.open(numbers, batches[0], rooms)
        else:
            batches = [self._processor.collate_prompts([question.prompt]) for question in questions]
            has_room = all(map(self._reader.open_unread, numbers, batches, rooms))
        if not has_room:
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
        return opened

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
        number, those that are done for the last time. One that has failed (`Search.failure`) is done.

        Raises: what goes wrong with several questions together, unless the guilty one is looked for
        (`BatchLimits.finds_guilty`).
        """
        blame = Blame(self._limits.finds_guilty)
        self._reader.read_some(self._limits.prompt_tokens, blame)
        numbers = [number for number in self._reader.numbers if number not in blame.failures]
        rows = [BeamRow(number, beam) for number in numbers for beam in self._open[number].search.beams]
        if rows:
            self._reader.follow(rows)
        if len(rows) == 1 and (guesses := self._guesses(rows[0])):
            searches = self._step_ahead(rows[0], guesses, blame)
        else:
            searches = self._step_each(rows, blame)
        searches |= {number: Search((), failure=error) for number, error in blame.failures.items()}
        for number, search in searches.items():
            if search.is_done:
                del self._open[number]
                self._reader.drop(number, is_kept=search.failure is None)
            else:
                self._open[number] = replace(self._open[number], search=search)
        return searches

    def _step_each(self, rows: Sequence[BeamRow], blame: Blame) -> dict[int, Search]:
        """A token of each open answer."""
        searches = {}
        for own, logits in blame.each(rows, lambda row: row.record, self._reader.read):
            for number, best_first in self._choose(logits, own, blame).items():
                with blame.of(number):
                    searches[number] = advance(self._open[number].search, best_first, self._open[number].rules)
        return searches

    def _guesses(self, row: BeamRow) -> list[tuple[int, Cursor]]:
        """Tokens that may follow that of a lone row, each with the position at which the model would read it."""
        one = self._open[row.record]
        options, beam = one.question.options, row.beam
        most = min(
            one.method.lookup(options),
            self._to_guess,
            self._reader.room_ahead(row.record) if one.rules.beams == 1 else 0,
            options.max_new_tokens - len(beam.tokens) - 1,
        )
        if most <= 0 or not self._is_causal or one.question.by_token:
            return []
        found, cursor = [], beam.cursor
        for token in guess_next([*one.question.prompt.inputs["tokens"].tolist(), *beam.fed], most):
            cursor = cursor.advance(token)
            if cursor.is_done:
                break
            found.append((token, cursor))
        return found

    def _step_ahead(self, row: BeamRow, guesses: Sequence[tuple[int, Cursor]], blame: Blame) -> dict[int, Search]:
        """The tokens of a lone answer up to the first that was not guessed."""
        number, tokens, cursors = row.record, [token for token, _ in guesses], [cursor for _, cursor in guesses]
        with blame.of(number):
            logits = self._reader.read_ahead(row, cursors)
            search, count = self._open[number].search, 0
            while True:
                best_first = self._choose(logits[count : count + 1], [BeamRow(number, search.beams[0])], blame)
                if number not in best_first:  # it is no number, which is noted
                    break
                search = advance(search, best_first[number], self._open[number].rules)
                count += 1
                if search.is_done or count > len(tokens) or search.beams[0].tokens[-1] != tokens[count - 1]:
                    break
            self._reader.keep(row, [row.beam.cursor, *cursors][: max(count, 1)], len(logits))
            self._to_guess = next_count(count - 1, len(tokens))
            return {number: search}
        return {}

    def _rooms(self, questions: Sequence[AnswerRequest]) -> list[Room]:
        """Those of questions that are read in one go are equally large."""
        rooms = [
            Room(
                find_method(question.options).num_beams(question.options),
                max(1, question.prompt.length),
                question.options.max_new_tokens,
                question.prompt.size - question.prompt.length,
                question.adapter,
            )
            for question in questions
        ]
        if self.reads_in_pieces:
            return rooms
        prompt, answer, encoder = (max(sizes) for sizes in list(zip(*rooms, strict=True))[1:4])
        return [Room(room.beams, prompt, answer, encoder, room.adapter) for room in rooms]

    def _choose(self, logits: torch.Tensor, rows: Sequence[BeamRow], blame: Blame) -> dict[int, list[Candidate]]:
        """For each open question its candidates, best first; none for one whose logits are no numbers."""
        logits = ban_ids(logits, [self._open[row.record].banned for row in rows])

        def choose(places: Sequence[int]) -> dict[int, list[Candidate]]:
            own = logits if len(places) == len(rows) else logits[torch.tensor(places, device=logits.device)]
            return self._choose_alike(own, [rows[place] for place in places], blame)

        candidates: dict[int, list[Candidate]] = {}
        for alike in self._by_options(rows):
            for _, found in blame.each(alike, lambda place: rows[place].record, choose):
                candidates |= found
        for place, row in enumerate(rows):
            if row.record in candidates:
                with blame.of(row.record):
                    self._note(logits[place], row, candidates[row.record][0].token)
        return candidates

    def _note(self, logits: torch.Tensor, row: BeamRow, token: int) -> None:
        """Write down how likely the chosen token is, for those who asked."""
        question = self._open[row.record].question
        if question.trace is None:
            return
        scores = logits.log_softmax(dim=-1)
        top = scores.topk(min(question.top, len(scores)))
        told = zip(top.indices.tolist(), top.values.tolist(), logits[top.indices].tolist(), strict=True)
        pairs = [(id, score) for id, score, logit in told if logit > BANNED]
        question.trace.append(TokenScores(token, float(scores[token]), pairs))

    def _by_options(self, rows: Sequence[BeamRow]) -> list[list[int]]:
        """The places of rows whose answers are looked for in the same way."""
        groups: list[tuple[GenerateSettings, list[int]]] = []
        for place, row in enumerate(rows):
            options = self._open[row.record].question.options
            own = next((places for known, places in groups if known is options or known == options), None)
            if own is None:
                groups.append((options, [place]))
            else:
                own.append(place)
        return [places for _, places in groups]

    def _choose_alike(self, logits: torch.Tensor, rows: Sequence[BeamRow], blame: Blame) -> dict[int, list[Candidate]]:
        """rows: whose answers are looked for in the same way."""
        questions = [self._open[row.record].question for row in rows]
        options = questions[0].options
        logits = _penalise(add_bias(logits, [question.bias for question in questions]), rows, options)
        scores = logits.log_softmax(dim=-1)
        with _drawing([question.stream for question in questions if question.stream is not None]) as streams:
            tokens = find_method(options).propose(logits, scores, options, streams)
            # In one table, so that the device is waited for once; a float holds every id.
            peaks, own = scores.amax(dim=-1, keepdim=True), scores.gather(-1, tokens)
            table = torch.cat([peaks, own, tokens.to(own.dtype)], dim=-1).cpu()
        peaks, own, ids = table.split([1, tokens.shape[1], tokens.shape[1]], dim=-1)
        odd = {rows[place].record for place in (~peaks.isfinite()).nonzero()[:, 0].tolist()}
        for number in odd:
            blame.note(number, no_numbers())
        sums = own + torch.tensor([[row.beam.score] for row in rows], dtype=own.dtype)
        found = _by_record(rows, ids.long().tolist(), sums.tolist())
        return {number: best_first for number, best_first in found.items() if number not in odd}


@contextmanager
def _drawing(streams: list[np.random.Generator]) -> Iterator[list[np.random.Generator]]:
    """Random numbers that are drawn within; where that goes wrong they are still to be drawn."""
    states = [stream.bit_generator.state for stream in streams]
    try:
        yield streams
    except BaseException:
        for stream, state in zip(streams, states, strict=True):
            stream.bit_generator.state = state
        raise


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
