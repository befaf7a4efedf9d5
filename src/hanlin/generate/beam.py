"""Beam search over plain data: which beams go on, which answers are found, when a record is done. Knows no model.

As the original CPM-Bee does it (`CPMBeeBeamSearch`, golden case bee_generate). Greedy search and sampling are the same
search with one beam and one candidate a step. What other originals do differently is said by `BeamVariant`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from hanlin.core.batch import Cursor
from hanlin.models.family import BeamVariant


@dataclass(frozen=True)
class BeamRules:
    """beams: open answers kept at each step; max_tokens: of all answers of the record together, ends included;
    length_exponent: a found answer scores sum / length ** exponent; stops_early: done as soon as `beams` are found;
    variant: the family's own.
    """

    beams: int
    max_tokens: int
    length_exponent: float = 1.0
    stops_early: bool = False
    variant: BeamVariant = field(default_factory=BeamVariant)


class Candidate(NamedTuple):
    """A way to go on: the beam's number, the id that follows, the sum of log probabilities with it."""

    beam: int
    token: int
    score: float


@dataclass(frozen=True)
class Beam:
    """An open answer. tokens: the ids chosen; fed: what the model reads after the prompt, its next position too."""

    cursor: Cursor
    fed: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    score: float = 0.0
    # Its number among the beams of the step before.
    parent: int = 0

    @classmethod
    def first(cls, cursor: Cursor) -> Beam:
        return cls(cursor, fed=(cursor.inputs()["tokens"],))

    def follow(self, candidate: Candidate) -> Beam:
        """The beam after the candidate was chosen."""
        cursor = self.cursor.advance(candidate.token)
        fed = self.fed if cursor.is_done else (*self.fed, cursor.inputs()["tokens"])
        return Beam(cursor, fed, (*self.tokens, candidate.token), candidate.score, candidate.beam)


@dataclass(frozen=True)
class Hypothesis:
    """A found answer and its score (mean log probability where the exponent is 1). is_ended: by a token that says so,
    not because there was no more room.
    """

    score: float
    tokens: tuple[int, ...]
    is_ended: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Search:
    """Where the search for one record's answer stands; prompt_length: tokens before the answer; failure: why there
    will be none.
    """

    beams: tuple[Beam, ...]
    found: tuple[Hypothesis, ...] = ()
    prompt_length: int = 0
    failure: Exception | None = None

    @property
    def is_done(self) -> bool:
        return not self.beams

    @property
    def best(self) -> Hypothesis:
        """Raises: the failure, where there is one."""
        if self.failure is not None:
            raise self.failure
        return max(self.found, key=lambda hypothesis: hypothesis.score)


def start_search(cursor: Cursor, prompt_length: int = 0) -> Search:
    """One beam; the others come out of its candidates.

    differs: the original starts from equal beams of which all but one have the score -1e9, which costs more rows.
    """
    return Search((Beam.first(cursor),), prompt_length=prompt_length)


def best_candidates(tokens: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], count: int) -> list[Candidate]:
    """The `count` best of all beams' own candidates, best first; among equals the earlier beam."""
    rows = enumerate(zip(tokens, scores, strict=True))
    candidates = [Candidate(beam, *pair) for beam, row in rows for pair in zip(*row, strict=True)]
    return sorted(candidates, key=lambda candidate: -candidate.score)[:count]


def advance(search: Search, candidates: Iterable[Candidate], rules: BeamRules) -> Search:
    """The search after one step; `candidates` best first, enough of them to fill the beams beside those that end."""
    candidates = list(candidates)
    best, checks_done_after_ends = candidates[0].score, rules.variant.checks_done_after_ends
    if not checks_done_after_ends and is_settled(search, best, rules):
        return replace(search, beams=())
    beams, ended = _sorted_out(search, candidates, rules)
    after = search
    for beam in ended:
        after = add_answer(after, beam, rules)
    if checks_done_after_ends and is_settled(after, best, rules):
        return replace(after, beams=())
    if not beams or len(beams[0].tokens) < rules.max_tokens:
        return replace(after, beams=tuple(beams))
    for beam in beams:
        after = add_answer(after, beam, rules)
    return replace(after, beams=())


def is_settled(search: Search, best_score: float, rules: BeamRules) -> bool:
    """Whether no open beam can beat what was found; `best_score` is the best candidate's sum."""
    if rules.variant.ended_beams_leave or len(search.found) < rules.beams:
        return False
    # kept (bee_generate): the sum with the new token is divided by the length without it.
    length = _scored_length(search, search.beams[0], rules)
    worst = min(hypothesis.score for hypothesis in search.found)
    return rules.stops_early or worst >= best_score / length**rules.length_exponent


def _sorted_out(search: Search, candidates: Iterable[Candidate], rules: BeamRules) -> tuple[list[Beam], list[Beam]]:
    """Those that go on, until there are enough, and those that end before."""
    beams, ended = [], []
    if rules.variant.ended_beams_leave:
        candidates = islice(candidates, rules.beams)
    for place, candidate in enumerate(candidates):
        beam = search.beams[candidate.beam].follow(candidate)
        if not beam.cursor.is_done:
            beams.append(beam)
        elif place < rules.beams or not rules.variant.end_needs_top_beams:
            ended.append(beam)
        if len(beams) == rules.beams:
            break
    return beams, ended


def add_answer(search: Search, beam: Beam, rules: BeamRules) -> Search:
    """The search with one answer more; never more than `rules.beams`, the worst one goes."""
    new = Hypothesis(
        beam.score / _scored_length(search, beam, rules) ** rules.length_exponent, beam.tokens, beam.cursor.is_done
    )
    found = search.found
    if len(found) == rules.beams:
        worst = min(range(len(found)), key=lambda number: found[number].score)
        if new.score <= found[worst].score:
            return search
        found = (*found[:worst], *found[worst + 1 :])
    return replace(search, found=(*found, new))


def _scored_length(search: Search, beam: Beam, rules: BeamRules) -> int:
    if rules.variant.length_includes_prompt:
        return search.prompt_length + len(beam.tokens) - beam.cursor.is_done
    return len(beam.tokens) + rules.variant.length_includes_start
