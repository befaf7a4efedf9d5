"""Answers that are written together: questions join and leave the batch after any step (continuous batching).

A question that joins is read by itself; then its rows stand beside the others in the KV cache, the newest position of
all in one column. What each of them wants (method, temperature, penalties) is its own. An answer does not depend on
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
from hanlin.models.family import BeamVariant, Processor
from hanlin.recipe.settings import GenerateSettings

from .beam import BeamRules, Candidate, Search, advance, best_candidates, start_search
from .dialogue_cache import DialogueCache
from .method import GenerateMethod, find_method
from .reader import BeamRow, Reader
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


class RunningBatch:
    """Questions by number, with the state of their searches."""

    def __init__(self, model: nn.Module, processor: Processor, device: torch.device, variant: BeamVariant) -> None:
        self._model, self._processor, self._device, self._variant = model, processor, device, variant
        self._open: dict[int, _Open] = {}
        self._reader: Reader | None = None

    @property
    def is_empty(self) -> bool:
        return not self._open

    @property
    def size(self) -> tuple[int, int]:
        """Rows and positions that the KV cache holds; their product is what it costs."""
        return (0, 0) if self._reader is None or self.is_empty else self._reader.size

    def add(
        self, numbers: Iterable[int], questions: Sequence[AnswerRequest], memory: DialogueCache | None = None
    ) -> dict[int, Search]:
        """Read the prompts of questions, in one go, and let them join; returns where their searches begin.

        numbers: their names in this batch, new ones; memory: of the dialogue of a single question, which must then
        stay alone.
        """
        numbers = list(numbers)
        assert not self._open.keys() & set(numbers), "these numbers are taken"
        batch = self._processor.collate_prompts([question.prompt for question in questions])
        longest = max(question.prompt.length for question in questions)
        opened = {}
        for number, question, cursor, banned in zip(numbers, questions, batch.cursors, batch.banned, strict=True):
            method, options = find_method(question.options), question.options
            rules = BeamRules(method.num_beams(options), options.max_new_tokens, variant=self._variant)
            length = 1 + (longest if method.counts_padding(options) else question.prompt.length)
            opened[number] = _Open(question, method, rules, banned, start_search(cursor, length))
        reader = Reader(self._model, batch, numbers, self._device, memory)
        if self.is_empty or self._reader is None:
            self._reader = reader
        else:
            self._reader.join(reader)
        self._open |= opened
        return {number: one.search for number, one in opened.items()}

    def drop(self, number: int) -> None:
        """Forget a question; its rows are gone with the next step."""
        self._open.pop(number, None)

    def step(self) -> dict[int, Search]:
        """Write a token of each open answer; the searches after it by number, those that are done for the last time.

        Raises: HanlinError when the model yields no numbers.
        """
        assert self._reader is not None, "nothing was added"
        rows = [
            BeamRow(number, beam)
            for number in self._reader.numbers
            if number in self._open
            for beam in self._open[number].search.beams
        ]
        logits = self._reader.read(rows)
        searches = {}
        for number, best_first in self._choose(logits, rows).items():
            one = self._open[number]
            search = searches[number] = advance(one.search, best_first, one.rules)
            if search.is_done:
                del self._open[number]
            else:
                self._open[number] = _Open(one.question, one.method, one.rules, one.banned, search)
        return searches

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
        check_numbers(scores.amax(dim=-1))
        streams = [self._open[row.record].question.stream for row in rows]
        drawn = [stream for stream in streams if stream is not None]
        tokens = find_method(options).propose(logits, scores, options, drawn)
        sums = scores.gather(-1, tokens) + scores.new_tensor([[row.beam.score] for row in rows])
        return _by_record(rows, tokens.tolist(), sums.tolist())


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
