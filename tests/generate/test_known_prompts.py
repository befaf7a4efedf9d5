"""A dialogue goes on from what the model has read; its answers are those of a model that reads everything again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ids import CONFIG, Ids

from hanlin.generate.engine import Engine
from hanlin.generate.known_prompts import KnownPrompts
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.running_batch import AnswerRequest, BatchLimits, TokenScores
from hanlin.layers.slot_cache import SlotCache
from hanlin.models.chatglm2 import family
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.prefix import PrefixTuning

GREEDY = GreedySettings(max_new_tokens=6)


class Counting:
    """A model that counts the columns it reads."""

    def __init__(self, model: Any) -> None:
        self.model, self.num_columns, self.training = model, 0, False
        self.modules, self.parameters = model.modules, model.parameters

    def __call__(self, **inputs: Any) -> torch.Tensor:
        self.num_columns += inputs["tokens"].shape[1]
        return self.model(**inputs)


@pytest.fixture(params=["plain", "prefix"])
def model(request: pytest.FixtureRequest) -> Counting:
    model = family.model()(CONFIG).double()
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(1))
    if request.param == "prefix":
        settings = PrefixTuning(length=3)
        apply_tuning(model, settings, family, torch.Generator().manual_seed(2))
    return Counting(model.eval())


def test_a_turn_reads_only_what_is_new(model: Counting) -> None:
    engine = Engine(model, Ids(), family=family)  # pyright: ignore[reportArgumentType]
    memory = engine.run_together(BatchLimits(kept=1))
    first = [5, 6, 7, 8]
    answer = [ord(letter) - 65 for letter in "".join(engine.stream(first, GREEDY, memory=memory))]
    others = [[*first, *answer, 9, 10], [*first, *answer[:2], 11], [5, 6], [5, 6], [12, 5, 6]]
    for turn, new in zip(others, (3, 1, 1, 1, 3), strict=True):
        expected = "".join(engine.stream(turn, GREEDY))
        model.num_columns = 0
        assert "".join(engine.stream(turn, GREEDY, memory=memory)) == expected
        assert model.num_columns == new + GREEDY.max_new_tokens - 1


def test_an_answer_that_was_broken_off_leaves_a_memory_that_is_right(model: Counting) -> None:
    engine = Engine(model, Ids(), family=family)  # pyright: ignore[reportArgumentType]
    memory = engine.run_together(BatchLimits(kept=1))
    next(engine.stream([5, 6, 7, 8], GREEDY, memory=memory))
    assert memory.is_empty
    turn, model.num_columns = [5, 6, 7, 8, 9], 0
    answer = list(engine.stream(turn, GREEDY, memory=memory))
    assert model.num_columns == GREEDY.max_new_tokens  # nothing of the prompt is read again
    assert answer == list(engine.stream(turn, GREEDY, memory=memory)) == list(engine.stream(turn, GREEDY))


def test_nothing_is_taken_from_beams_that_go_on_from_each_other(model: Counting) -> None:
    engine = Engine(model, Ids(), family=family)  # pyright: ignore[reportArgumentType]
    prompt, beams = [5, 6, 7, 8], BeamSettings(max_new_tokens=20, beams=3)
    running, scores = engine.run_together(BatchLimits(kept=1)), []
    with engine.inference():
        running.add([0], [AnswerRequest(engine.prompt(prompt, beams), beams)])
        first = [beam.tokens[0] for beam in running.step()[0].beams]
        running.step()
        running.step()  # the best beam goes on from what was the second one
        for batch in (running, engine.run_together()):
            traces: list[list[TokenScores]] = [[] for _ in first]
            for number, (token, trace) in enumerate(zip(first, traces, strict=True), start=1):
                batch.add([number], [AnswerRequest(engine.prompt([*prompt, token, 10], GREEDY), GREEDY, trace=trace)])
            batch.step()
            scores.append([trace[0].score for trace in traces])
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)


def test_a_beginning_that_many_have_is_compared_once() -> None:
    compared = []

    class Position(tuple[int, ...]):
        __slots__ = ()
        __hash__ = tuple.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return tuple.__eq__(self, other)

    cache = SlotCache()
    known, beginning = KnownPrompts(cache, 8), [Position([number]) for number in range(500)]
    for number in range(8):
        [slot] = cache.take(1, 512) or []
        slot.length = 501
        known.keep(slot, [*beginning, Position([1000 + number])])
    slot, length = known.find([Position([number]) for number in [*range(500), 1005, 7]])
    assert slot is not None
    assert length == 501
    assert len(compared) < 1100
