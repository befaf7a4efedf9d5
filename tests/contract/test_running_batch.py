"""Whoever else is in the batch, whenever they came and left: an answer is that of its record alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from family_cases import METHODS, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import sampled

from hanlin.core.batch import Prompt
from hanlin.formats.load import added_parameters
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.generate.running_batch import AnswerRequest, BatchLimits
from hanlin.layers.slot_cache import Budget
from hanlin.run.adapted import joint_engine
from hanlin.tuning.apply import apply_tuning

WAYS = (
    GreedySettings(max_new_tokens=9),
    GreedySettings(max_new_tokens=4, repetition_penalty=1.5, repetition_window=2),
    SampleSettings(max_new_tokens=7, temperature=1.3, top_k=9),
    SampleSettings(max_new_tokens=12, top_p=0.8),
    BeamSettings(max_new_tokens=6, beams=3),
    GreedySettings(max_new_tokens=15, lookup=6),
    GreedySettings(max_new_tokens=11, lookup=3, frequency_penalty=0.4),
)
# Steps of the batch before a question comes, which record and which way; some leave after a few steps.
visits = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 99), st.sampled_from(range(len(WAYS))), st.none() | st.integers(1, 5)),
    min_size=2,
    max_size=7,
)
SOME, MANY = 8, 60
"""Plans that are drawn, in `make test` and besides in `make drill`."""


@pytest.mark.parametrize("examples", sampled([SOME, MANY], [SOME]))
def test_answers_are_those_of_a_lone_run(case: Case, examples: int) -> None:
    _check(case, None, examples)


def test_so_are_those_of_a_model_whose_matrices_lie_in_blocks(case: Case) -> None:
    engine, batch = Engine(case.model().float().requires_grad_(False), case.processor, family=case.family), case.batch()
    losses = []
    for _ in range(2):
        with engine.inference():
            losses.append(engine.model(**batch.inputs, labels=batch.labels, reduction="none"))
        engine.prepack_weights()
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    _check_engine(engine, case, BatchLimits(prompt_tokens=3, kept=2), examples=4)


@pytest.mark.parametrize("examples", sampled([SOME, MANY], [SOME]))
def test_so_are_those_of_prompts_that_are_read_in_pieces_and_remembered(case: Case, examples: int) -> None:
    """Where the family allows it, also with little room, so that what is remembered has to go."""
    _check(case, None, examples, BatchLimits(Budget(640), prompt_tokens=3, kept=3))


@pytest.mark.parametrize("examples", sampled([SOME, MANY], [SOME]))
def test_so_are_those_of_a_model_with_a_prefix_or_prompts(case: Case, examples: int) -> None:
    for method in sorted({"prefix", "prompt"} & set(case.tuning)):
        _check(case, method, examples // 2)
        _check(case, method, examples // 2, BatchLimits(prompt_tokens=2, kept=2))


def test_what_is_known_of_a_prompt_is_not_read_again(case: Case) -> None:
    if not case.family.is_causal:
        return
    model, seen = case.model(), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["tokens"].numel()), with_kwargs=True)
    engine = Engine(model, case.processor, family=case.family)
    prompt = engine.processor.prompt(max(case.records, key=lambda record: len(str(record))))
    running = engine.run_together(BatchLimits(prompt_tokens=2, kept=1))
    for number in range(3):
        seen.clear()
        with engine.inference():
            running.add([number], [AnswerRequest(prompt, GreedySettings(max_new_tokens=1))])
            while not running.is_empty:
                running.step()
        pieces = [2] * (prompt.length // 2) + [1] * (prompt.length % 2)
        assert seen == [*(pieces if number == 0 else ()), 1]


def test_answers_to_one_prompt_read_it_once(case: Case) -> None:
    model, seen = case.model(), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["tokens"].shape), with_kwargs=True)
    engine = Engine(model, case.processor, family=case.family)
    prompt = engine.processor.prompt(max(case.records, key=lambda record: len(str(record))))
    running = engine.run_together(BatchLimits(kept=1))
    with engine.inference():
        running.add(range(3), [AnswerRequest(prompt, GreedySettings(max_new_tokens=1))] * 3)
        assert len(running.step()) == 3
    assert seen == [(1, prompt.length), (3, 1)]


def test_answers_to_one_prompt_beside_others_are_those_of_lone_runs(case: Case) -> None:
    engine = Engine(case.model(), case.processor, family=case.family)
    prompts = [engine.processor.prompt(case.records[place % len(case.records)]) for place in (0, 1, 0, 0, 1)]
    asked = [AnswerRequest(prompt, WAYS[2], record_stream(place, 0)) for place, prompt in enumerate(prompts)]
    running, found = engine.run_together(BatchLimits(kept=1)), {}
    with engine.inference():
        running.add(range(5), asked)
        while not running.is_empty:
            found |= {number: one.best.tokens for number, one in running.step().items() if one.is_done}
    for number, prompt in enumerate(prompts):
        *_, [search] = engine.search([prompt], WAYS[2], [record_stream(number, 0)])
        assert found[number] == search.best.tokens


def test_so_are_those_of_rows_that_have_adapters_of_their_own(case: Case) -> None:
    """The base and two LoRAs of it, in one call of the model; what one has read is not taken for another."""
    if "lora" not in case.tuning:
        return
    engines, sizes = _with_loras(case), []
    joint, together = joint_engine(engines[""], {name: engine for name, engine in engines.items() if name})
    assert together == {"one", "two"}
    joint.model.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["tokens"])), with_kwargs=True)
    prompt = joint.processor.prompt(max(case.records, key=lambda record: len(str(record))))
    asked = [(name, way) for way in range(len(WAYS)) for name in ("one", "", "two")]
    running, found, waiting = joint.run_together(BatchLimits(prompt_tokens=9, kept=3)), {}, list(enumerate(asked))
    with joint.inference():
        while waiting or not running.is_empty:
            for number, (name, way) in waiting[:5]:
                one = AnswerRequest(prompt, WAYS[way], record_stream(way, 0), adapter=name)
                assert running.add([number], [one]) is not None
            waiting = waiting[5:]
            found |= {number: one.best.tokens for number, one in running.step().items() if one.is_done}
    for number, (name, way) in enumerate(asked):
        *_, [search] = engines[name].search([prompt], WAYS[way], [record_stream(way, 0)])
        assert found[number] == search.best.tokens, (name, way)
    assert max(sizes) > len(WAYS)
    assert len({found[number] for number in range(3)}) > 1


def _with_loras(case: Case) -> dict[str, Engine]:
    """A base, and two models that share its tensors."""
    base = case.model()
    models, shared = {"": base}, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    for number, name in enumerate(("one", "two")):
        models[name] = apply_tuning(copy.deepcopy(base, dict(shared)), METHODS["lora"], case.family)
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in added_parameters(models[name]).values():
                weight.copy_(torch.randn(weight.shape, generator=draw))
        models[name] = models[name].double().eval()
    return {
        name: Engine(model.requires_grad_(False), case.processor, family=case.family) for name, model in models.items()
    }


def _check(case: Case, method: str | None, examples: int, limits: BatchLimits | None = None) -> None:
    _check_engine(Engine(case.model(method), case.processor_for(method), family=case.family), case, limits, examples)


def _check_engine(engine: Engine, case: Case, limits: BatchLimits | None, examples: int) -> None:
    prompts = [engine.processor.prompt(record) for record in case.records]

    @cache
    def alone(record: int, way: int) -> Sequence[int]:
        plain = WAYS[way].model_copy(update={"lookup": 0})
        *_, [search] = engine.search([prompts[record]], plain, [record_stream(way, record)])
        return search.best.tokens

    @given(visits)
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    def holds(plan: list[tuple[int, int, int, int | None]]) -> None:
        plan = [(wait, record % len(prompts), way, stay) for wait, record, way, stay in plan]
        found = _answered_together(engine, prompts, plan, limits)
        for number, (_, record, way, _) in enumerate(plan):
            if number in found:
                assert found[number] == alone(record, way), plan
        assert len(found) >= sum(stay is None for *_, stay in plan)

    holds()


def _answered_together(
    engine: Engine,
    prompts: Sequence[Prompt],
    plan: Sequence[tuple[int, int, int, int | None]],
    limits: BatchLimits | None,
) -> dict[int, Any]:
    """Tokens of those that stayed to their end; a question comes some steps after the one before it."""
    running, found, leaving = engine.run_together(limits), {}, {}
    waiting, step, due = list(enumerate(plan)), 0, plan[0][0]
    while waiting or not running.is_empty:
        with engine.inference():
            while waiting and (step >= due or running.is_empty):
                number, (_, record, way, stay) = waiting[0]
                asked = AnswerRequest(prompts[record], WAYS[way], record_stream(way, record))
                if running.add([number], [asked]) is None:
                    assert not running.is_empty, "there must be room for a single question"
                    break
                del waiting[0]
                due = step + waiting[0][1][0] if waiting else 0
                if stay is not None:
                    leaving[number] = step + stay
            found |= {number: one.best.tokens for number, one in running.step().items() if one.is_done}
        step += 1
        for number in [number for number, when in leaving.items() if when <= step]:
            del leaving[number]
            running.drop(number)
    assert running.positions == 0
    return found
