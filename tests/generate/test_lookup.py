"""Tokens that are looked up ahead: the same answer in fewer calls of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_cases import Case, case_of
from pydantic import ValidationError

from hanlin.generate.engine import Engine
from hanlin.generate.lookup import guess_next, next_count
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.running_batch import AnswerRequest, BatchLimits, TokenScores
from hanlin.recipe.settings import GENERATE_METHODS


def test_what_followed_the_longest_run_the_last_time_is_guessed() -> None:
    assert guess_next([1, 2, 3, 9, 1, 2, 3, 8, 2, 3, 7, 1, 2, 3], 2) == [8, 2]
    assert guess_next([5, 1, 2, 6, 4, 1, 2], 9) == [6, 4, 1, 2]
    assert guess_next([1, 1, 1, 1, 1, 1, 1], 3) == [1]
    assert guess_next([7, 1, 7, 2, 7], 3) == []  # one token alone says too little
    assert guess_next([7, 7], 3) == guess_next([7], 3) == guess_next([], 3) == []


def test_more_is_guessed_while_all_was_right() -> None:
    assert [next_count(right, 4) for right in (4, 3, 1, 0)] == [8, 4, 2, 2]


def answered(
    case: Case, options: GreedySettings, **asked: bool
) -> tuple[tuple[int, ...], list[TokenScores], list[int]]:
    """Tokens, how likely they were, and the positions of each call of the model."""
    model, seen, trace = case.model(), [], []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["tokens"].numel()), with_kwargs=True)
    engine = Engine(model, case.processor, family=case.family)
    prompt = engine.processor.prompt(max(case.records, key=lambda record: len(str(record))))
    running = engine.run_together(BatchLimits(kept=2))
    with engine.inference():
        running.add([0], [AnswerRequest(prompt, options, trace=trace, top=2, **asked)])
        found = {}
        while not running.is_empty:
            found = running.step()
        assert found[0].best.tokens == tuple(one.token for one in trace)
        again = AnswerRequest(prompt, options.model_copy(update={"lookup": 0}))
        running.add([1], [again])  # what is remembered of the first one holds what was kept alone
        while not running.is_empty:
            found = running.step()
    assert found[1].best.tokens == tuple(one.token for one in trace)
    return found[1].best.tokens, trace, seen


@pytest.mark.parametrize("family", ["cpm1", "chatglm2"])
def test_a_lone_answer_takes_fewer_calls_and_has_the_same_tokens(family: str, tmp_path: Path) -> None:
    case, plain = case_of(family, tmp_path), GreedySettings(max_new_tokens=60)
    tokens, scores, calls = answered(case, plain)
    ahead, ahead_scores, ahead_calls = answered(case, plain.model_copy(update={"lookup": 8}))
    assert ahead == tokens
    assert [one.token for one in ahead_scores] == [one.token for one in scores]
    assert [one.score for one in ahead_scores] == pytest.approx([one.score for one in scores], abs=1e-5)
    assert len(ahead_calls) < len(calls) - len(tokens) / 4  # a small random model says the same again and again
    assert max(ahead_calls[1:]) <= 9


def test_a_token_at_a_time_where_each_is_to_be_seen(tmp_path: Path) -> None:
    case, options = case_of("cpm1", tmp_path), GreedySettings(max_new_tokens=40, lookup=8)
    assert answered(case, options, by_token=True)[2][1:41] == [1] * 40


def test_other_methods_have_no_lookup() -> None:
    for method in ("beam", "sample"):
        with pytest.raises(ValidationError, match="lookup"):
            GENERATE_METHODS.make({"method": method, "lookup": 4})
