"""Answers that are written together: questions join and leave the batch after any step (continuous batching).

A question that joins has slots of its own in the KV cache; its prompt is read at once, or in pieces beside the steps
of the others. What each of them wants (method, temperature, penalties) is its own. An answer does not depend on
the others (up to floating-point rounding): nothing of them is visible to it, and it draws from its own random numbers.
So does what goes wrong with one of them: its search ends with the failure, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from .proposals import NextTokens, ProposedRows, TokenScores, fetch, propose_alike, rows_at
from .reader import BeamRow, Reader, Room
from .sampling import ban_ids, no_numbers


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
            for number, proposals in _by_record(own, self._proposals(logits, own, blame)).items():
                usable = [proposal for proposal in proposals if proposal is not None]
                if len(usable) < len(proposals):
                    blame.note(number, no_numbers())
                    continue
                with blame.of(number):
                    searches[number] = self._advance(number, self._open[number].search, usable)
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
        if most <= 0 or not self._is_causal or one.question.by_token or one.method.is_random:
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
            search, count, rows = self._open[number].search, 0, [row]
            for token in tokens:  # as if it had been chosen; its score is not asked for
                rows.append(BeamRow(number, rows[-1].beam.follow(Candidate(0, token, 0.0))))
            proposals = self._proposals(logits, rows, blame)
            while count in proposals:
                if (proposal := proposals[count]) is None:
                    blame.note(number, no_numbers())
                    break
                search = self._advance(number, search, [proposal])
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

    def _proposals(self, logits: torch.Tensor, rows: Sequence[BeamRow], blame: Blame) -> dict[int, NextTokens | None]:
        """How rows may go on, by their place; None where logits are no numbers. However many ways of looking for
        answers and of noting them there are, the device is waited for once.
        """
        logits = ban_ids(logits, [self._open[row.record].banned for row in rows])
        questions = [self._open[row.record].question for row in rows]

        def propose(places: Sequence[int]) -> torch.Tensor:
            asked = [questions[place] for place in places]
            return propose_alike(rows_at(logits, places), [rows[place].beam for place in places], asked)

        parts: list[ProposedRows] = []
        for alike in self._by_options(rows):
            parts += blame.each(alike, lambda place: rows[place].record, propose)
        noted = {place: one.top for place, one in enumerate(questions) if one.trace is not None}
        return fetch(logits, parts, noted)

    def _advance(self, number: int, search: Search, proposals: Sequence[NextTokens]) -> Search:
        """A question's search after one step, of which is written down how likely the chosen token is, if that was
        asked; proposals: of each beam.
        """
        one = self._open[number]
        sums = [
            (own.scores + own.scores.dtype.type(beam.score)).tolist()
            for own, beam in zip(proposals, search.beams, strict=True)
        ]
        ids = [own.ids for own in proposals]
        best_first = best_candidates(ids, sums, max(map(len, ids)))
        if one.question.trace is not None and proposals[0].told is not None:
            one.question.trace.append(TokenScores(best_first[0].token, *proposals[0].told))
        return advance(search, best_first, one.rules)

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


def _by_record(
    rows: Sequence[BeamRow], proposals: Mapping[int, NextTokens | None]
) -> dict[int, list[NextTokens | None]]:
    """The proposals of each question's beams."""
    found: dict[int, list[NextTokens | None]] = {}
    for place, proposal in sorted(proposals.items()):
        found.setdefault(rows[place].record, []).append(proposal)
    return found
