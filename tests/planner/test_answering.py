"""The plan of answers against the engine that writes them: the cache to the byte, what a step needs within 10 %."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from family_cases import Case, case_of

from hanlin.core.cards import DEVICES
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.running_batch import AnswerRequest, BatchLimits
from hanlin.layers.slot_cache import Budget
from hanlin.planner.answering import AnsweringModel
from hanlin.planner.memory_tracker import MemoryTracker
from hanlin.recipe.reading import make_recipe

ROWS, SHORT = 6, 48


def planned(case: Case, *changes: str) -> AnsweringModel:
    model = {"family": case.name, "config": asdict(case.config)}
    recipe = make_recipe({"model": model, "run": {"folder": "run"}}, ("train.precision=fp32", *changes))
    return AnsweringModel(recipe, None, None, (SHORT, SHORT, SHORT))


@pytest.mark.parametrize("name", ["chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee"])
def test_an_engine_takes_what_the_plan_says(name: str, tmp_path: Path) -> None:
    case = case_of(name, tmp_path)
    plan, budget = planned(case), Budget(10**6)
    engine = Engine(case.model().float().requires_grad_(False), case.processor, family=case.family)
    weights = sum(weight.nbytes for weight in engine.model.parameters())
    assert plan.weights == weights
    running = engine.run_together(BatchLimits(budget))
    prompt = engine.processor.prompt(case.records[0])
    asked = [AnswerRequest(prompt, GreedySettings(max_new_tokens=8), record_stream(0, row)) for row in range(ROWS)]
    with engine.inference():
        assert running.add(range(ROWS), asked) is not None
        running.step()
        [cache] = budget.caches
        slots = cache.positions // (plan.width + plan.encoder_width)
        assert cache.bytes == slots * plan.slot
        with MemoryTracker(others=tuple(engine.model.parameters())) as live:
            running.step()
    planned_bytes = weights + slots * plan.slot + plan.step_bytes(ROWS)
    # Views of the cache count as if it were new.
    assert planned_bytes == pytest.approx(weights + max(live.peak, cache.bytes), rel=0.1)


def test_more_memory_holds_more_answers_and_all_that_is_said_fits() -> None:
    recipe = make_recipe({"model": {"family": "chatglm2"}, "run": {"folder": "run"}}, ())
    found = {}
    for name in ("A10-24", "A100-80"):
        plan = AnsweringModel(recipe, DEVICES[name], None, (2048, 2048, 512))
        found[name] = plan.most_rows(DEVICES[name])
        limit = (DEVICES[name].memory_bytes - 1.5 * 2**30) / 1.05
        assert plan.peak(found[name]) <= limit < plan.peak(found[name] + 1)
    assert found["A100-80"] > 4 * found["A10-24"] > 0
    # Keys and values of two heads of 128 in 28 layers, and a span: what the family's configuration says.
    assert plan.slot == 2048 * (28 * 2 * 2 * 128 * 2 + 8)
    one = plan.step_seconds(1, DEVICES["A100-80"]).total
    read = plan.weights / DEVICES["A100-80"].bandwidth
    assert read < one < 2.5 * read  # a step reads all weights once


def test_packed_weights_take_less_room(tmp_path: Path) -> None:
    case = case_of("cpm1", tmp_path)
    plain, packed = planned(case), planned(case, "model.quantise=int8")
    assert packed.weights < plain.weights
    assert packed.parameters == plain.parameters
    assert packed.slot == plain.slot


def test_a_sequence_takes_the_same_beside_others(tmp_path: Path) -> None:
    plan = planned(case_of("chatglm2", tmp_path))
    assert plan.step(4).cached == plan.step(1).cached
    assert plan.step_bytes(64) == plan.step(64).transient
