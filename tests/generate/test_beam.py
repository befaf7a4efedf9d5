from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest

from hanlin.generate.beam import (
    Beam,
    BeamRules,
    Candidate,
    Hypothesis,
    Search,
    add_answer,
    advance,
    best_candidates,
    is_settled,
    start_search,
)
from hanlin.models.family import BeamVariant

END = 0


@dataclass(frozen=True)
class CountingCursor:
    """Answers that end with END; `answers` of them."""

    answers: int = 1
    token: int = 9

    @property
    def is_done(self) -> bool:
        return self.answers == 0

    def inputs(self) -> dict[str, int]:
        return {"tokens": self.token}

    def advance(self, token: int) -> CountingCursor:
        return CountingCursor(self.answers - (token == END), 9 if token == END else token)


def run(log_probabilities, rules: BeamRules, answers: int = 1) -> Search:
    """Search through a toy model: `log_probabilities(tokens so far)` -> one number per column."""
    search = start_search(CountingCursor(answers))
    while not search.is_done:
        rows = [log_probabilities(beam.tokens) for beam in search.beams]
        tokens = [range(len(row)) for row in rows]
        sums = [[beam.score + value for value in row] for beam, row in zip(search.beams, rows, strict=True)]
        search = advance(search, best_candidates(tokens, sums, 2 * rules.beams), rules)
    return search


def toy(tokens: tuple[int, ...]) -> list[float]:
    weights = [(sum(tokens) * 7 + len(tokens) * 3 + column * 5) % 11 + 1 for column in range(5)]
    return [math.log(weight / sum(weights)) for weight in weights]


def all_answers(length: int) -> dict[tuple[int, ...], float]:
    """Every answer of one slot with at most `length` tokens and its mean log probability."""
    found = {}
    for size in range(1, length + 1):
        for tokens in itertools.product(range(5), repeat=size):
            if END in tokens[:-1] or (tokens[-1] != END and size < length):
                continue
            found[tokens] = sum(toy(tokens[:place])[token] for place, token in enumerate(tokens)) / size
    return found


def test_enough_beams_find_the_best_of_all_answers():
    best = max(all_answers(4).items(), key=lambda item: item[1])
    found = run(toy, BeamRules(beams=700, max_tokens=4)).best
    assert found.tokens == best[0]
    assert found.score == pytest.approx(best[1])


def test_length_exponent_zero_compares_sums():
    best = max(all_answers(3).items(), key=lambda item: item[1] * len(item[0]))
    assert run(toy, BeamRules(700, 3, length_exponent=0.0)).best.tokens == best[0]


def test_an_end_begins_the_next_answer_until_the_last():
    def prefers_end(tokens):
        return [-0.1, -3.0, -4.0]

    search = run(prefers_end, BeamRules(beams=1, max_tokens=9), answers=3)
    assert search.best.tokens == (END, END, END)
    assert search.best.score == pytest.approx(-0.1)


def test_the_last_step_takes_every_candidate_as_an_answer():
    search = run(lambda tokens: [-9.0, -0.5, -1.0], BeamRules(beams=2, max_tokens=3))
    assert search.best.tokens == (1, 1, 1)
    assert len(search.found) == 2


def test_fed_holds_marks_and_the_next_token_but_no_end():
    beam = Beam.first(CountingCursor(2))
    for token in (3, END, 4):
        beam = beam.follow(Candidate(0, token, 0.0))
    assert beam.fed == (9, 3, 9, 4)
    assert beam.tokens == (3, END, 4)


def test_a_better_answer_replaces_the_worst():
    rules = BeamRules(beams=2, max_tokens=9)
    found = (Hypothesis(-1.0, (1,)), Hypothesis(-2.0, (2,)))
    beam = Beam(CountingCursor(0), (), tokens=(7, 8), score=-3.0)
    better = add_answer(Search((), found), beam, rules)
    assert better.found == (Hypothesis(-1.0, (1,)), Hypothesis(-1.5, (7, 8)))
    worse = Beam(CountingCursor(0), (), tokens=(7, 8), score=-4.0)
    assert add_answer(Search((), found), worse, rules).found == found


def test_the_prompt_counts_in_the_length_where_the_family_says_so():
    rules = BeamRules(2, 9, variant=BeamVariant(length_includes_prompt=True))
    ended = Beam(CountingCursor(0), (), tokens=(7, END), score=-3.0)
    [found] = add_answer(Search((), prompt_length=5), ended, rules).found
    assert found.score == -3.0 / (5 + 1)  # without the end


def test_an_end_far_down_the_list_does_not_count_where_the_family_says_so():
    candidates = [Candidate(0, token, -score) for token, score in ((1, 0.1), (END, 0.2), (END, 0.3), (2, 0.4))]
    for is_so, found in ((False, 2), (True, 1)):
        rules = BeamRules(2, 9, variant=BeamVariant(end_needs_top_beams=is_so))
        assert len(advance(start_search(CountingCursor()), candidates, rules).found) == found


@pytest.mark.parametrize(("best_score", "settled"), [(-5.9, False), (-6.0, True), (-6.1, True)])
def test_settled_when_no_open_beam_can_win(best_score: float, settled: bool):
    open_beam = Beam(CountingCursor(), (9, 1, 1, 1), tokens=(1, 1, 1))
    search = Search((open_beam,), (Hypothesis(-2.0, (0,)),))
    assert is_settled(search, best_score, BeamRules(1, 9)) is settled


def test_stops_early_as_soon_as_enough_is_found():
    open_beam = Beam(CountingCursor(), (9, 1), tokens=(1,))
    search = Search((open_beam,), (Hypothesis(-2.0, (0,)),))
    assert is_settled(search, -0.1, BeamRules(1, 9, stops_early=True))
    assert not is_settled(search, -0.1, BeamRules(2, 9, stops_early=True))


def test_equal_candidates_keep_the_order_of_their_beams():
    chosen = best_candidates([[5, 6], [7, 8]], [[-1.0, -2.0], [-1.0, -0.5]], 3)
    assert [(candidate.beam, candidate.token) for candidate in chosen] == [(1, 8), (0, 5), (1, 7)]
