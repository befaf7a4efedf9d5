"""What goes wrong with one of several questions ends its answer alone; the others get the ids of a lone run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from ids import CONFIG, Ids

from hanlin.core.errors import HanlinError
from hanlin.generate.blame import Blame
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.generate.running_batch import AnswerRequest, BatchLimits, RunningBatch
from hanlin.layers.slot_cache import Budget
from hanlin.models.chatglm2 import family
from hanlin.models.common.decoder_batch import TextCursor
from hanlin.recipe.settings import GenerateSettings

BAD = 49
"""An id that the model makes no numbers of, or does not read."""
IDS = Ids(barred=(BAD,))
WAYS: list[GenerateSettings] = [
    GreedySettings(max_new_tokens=6),
    SampleSettings(max_new_tokens=6, temperature=1.5, top_p=1.0),
    BeamSettings(max_new_tokens=6, beams=2),
]
PROMPTS = [[3, 5, 7, 9, 11], [4, 6], [8, 10, 12, 14, 16, 18, 20]]
GUILTY = [13, 15, BAD, 17, 19, 21, 23, 25, 27]


@pytest.fixture
def engine() -> Engine:
    model = family.model()(CONFIG).double()
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(1))
    return Engine(model.eval(), IDS, family=family)  # pyright: ignore


def request(record: list[int], options: GenerateSettings, **given: Any) -> AnswerRequest:
    return AnswerRequest(IDS.prompt(record), options, record_stream(5, len(record)), **given)


def alone(engine: Engine) -> list[Sequence[int]]:
    return [
        next(iter(searches)).best.tokens
        for record in PROMPTS
        for way in WAYS
        for searches in [list(engine.search([IDS.prompt(record)], way, [record_stream(5, len(record))]))[-1]]
    ]


def answered(engine: Engine, running: RunningBatch, guilty: AnswerRequest) -> tuple[list[Sequence[int]], Exception]:
    """The answers to all prompts in all ways, in the middle of which a guilty one joins; and its failure."""
    innocent = [request(record, way) for record in PROMPTS for way in WAYS]
    found: dict[int, Any] = {}
    with engine.inference():
        assert running.add(range(5), innocent[:5]) is not None
        running.step()
        assert running.add([99], [guilty]) is not None
        assert running.add(range(5, len(innocent)), innocent[5:]) is not None
        while not running.is_empty:
            found |= {number: search for number, search in running.step().items() if search.is_done}
    assert running.positions == 0
    failure = found.pop(99).failure
    return [found[number].best.tokens for number in range(len(innocent))], failure


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.method)
@pytest.mark.parametrize("kept", [0, 4])
def test_numbers_that_are_none_stay_with_their_answer(engine: Engine, way: GenerateSettings, kept: int) -> None:
    expected = alone(engine)
    with torch.no_grad():
        engine.model.embedding.weight[BAD] = torch.nan
    running = engine.run_together(BatchLimits(Budget(4096), prompt_tokens=4, kept=kept, finds_guilty=True))
    for _ in range(2):  # the second time in the places of those that were there before
        found, failure = answered(engine, running, request(GUILTY, way))
        assert found == expected
        assert "not numbers" in str(failure)


def test_a_place_is_clean_for_who_comes_next(engine: Engine) -> None:
    """Also after one who left before anybody could see that its numbers are none."""
    expected = alone(engine)
    with torch.no_grad():
        engine.model.embedding.weight[BAD] = torch.nan
    running = engine.run_together(BatchLimits(Budget(64 * 12), prompt_tokens=64, finds_guilty=True))
    with engine.inference():
        running.add(range(100, 112), [request(GUILTY, WAYS[0])] * 12)
        running._reader.read_some(None, Blame(is_sought=False))
    for number in range(100, 112):
        running.drop(number)
    short, long = (request(record, WAYS[0]) for record in (PROMPTS[1], PROMPTS[2]))
    with engine.inference():
        running.add([0, 1], [short, long])
        while not running.is_empty:
            last = running.step()
    assert [last[0].best.tokens, last[1].best.tokens] == [expected[3], expected[6]]


class Failing(TextCursor):
    """Goes wrong at its third position."""

    def advance(self, token: int) -> TextCursor:
        if self.position >= 4:
            raise RuntimeError("this cursor goes no further")
        return Failing(token, self.position + 1, self.ends)


def reading(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AnswerRequest:
    forward = engine.model.forward

    def strict(*args: Any, **inputs: Any) -> torch.Tensor:
        if BAD in inputs["tokens"]:
            raise RuntimeError("an id that cannot be read")
        return forward(*args, **inputs)

    monkeypatch.setattr(engine.model, "forward", strict)
    return request(GUILTY, WAYS[1])


def feeding(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AnswerRequest:
    """It goes wrong where its last token is read together with the others' next ones."""
    asked = reading(engine, monkeypatch)
    return replace(asked, prompt=IDS.prompt([1, 2, BAD]))


def sampling(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AnswerRequest:
    """In one go with others that draw."""
    return request([1, 2, 3], WAYS[1], bias={10**6: 1.0})


def advancing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AnswerRequest:
    asked = request([1, 2, 3], WAYS[1])
    return replace(asked, prompt=replace(asked.prompt, cursor=Failing(3, 2, frozenset())))


@pytest.mark.parametrize("fault", [reading, feeding, sampling, advancing])
def test_an_error_is_found_by_computing_each_alone(engine: Engine, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(engine)
    asked = fault(engine, monkeypatch)
    for prompt_tokens in (None, 4, 64):
        limits = BatchLimits(Budget(4096), prompt_tokens=prompt_tokens, kept=4, finds_guilty=True)
        found, failure = answered(engine, engine.run_together(limits), asked)
        assert found == expected
        assert isinstance(failure, RuntimeError | IndexError)


def test_who_looks_for_nobody_is_told_at_once(engine: Engine) -> None:
    running = engine.run_together(BatchLimits(kept=1))
    with engine.inference():
        running.add([0, 1], [request(PROMPTS[0], WAYS[0]), request(PROMPTS[1], WAYS[0], bias={10**6: 1.0})])
        with pytest.raises(IndexError):
            running.step()


@pytest.mark.parametrize("limits", [BatchLimits(Budget(640)), BatchLimits(Budget(640), prompt_tokens=4, kept=2)])
def test_a_question_that_cannot_be_added_holds_nothing(engine: Engine, limits: BatchLimits) -> None:
    running = engine.run_together(limits)
    bad = request([1, 2, 3], WAYS[0])
    bad = replace(bad, prompt=replace(bad.prompt, cursor=None))  # pyright: ignore
    for _ in range(20):  # more than there is room for
        with engine.inference(), pytest.raises(AttributeError):
            running.add([0, 1, 2], [request([1, 2, 3], WAYS[2]), bad, request([1, 2, 4], WAYS[0])])
    assert running.is_empty
    assert running.positions == 0
    with engine.inference():
        assert running.add([0], [request(PROMPTS[0], WAYS[0])]) is not None
        while not running.is_empty:
            running.step()


def test_a_failure_is_raised_where_an_answer_is_looked_at(engine: Engine) -> None:
    with torch.no_grad():
        engine.model.embedding.weight[BAD] = torch.nan
    with pytest.raises(HanlinError, match="not numbers"):
        list(engine.search([IDS.prompt(one) for one in (PROMPTS[0], GUILTY)], WAYS[0]))
