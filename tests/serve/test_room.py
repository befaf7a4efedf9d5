"""A server takes no more of the KV cache than there is memory for beside the weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family_cases import case_of
from ranks import run_ranks
from test_answers_of_ranks import make_engine

from hanlin.cli import serve
from hanlin.cli.main import main
from hanlin.core.device import free_memory_bytes
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.running_batch import AnswerRequest, BatchLimits
from hanlin.layers.slot_cache import Budget
from hanlin.serve import room
from hanlin.serve.limits import Limits
from hanlin.serve.room import free_room, position_bytes

FREE = 10**6


@pytest.mark.parametrize("name", ["chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee"])
def test_a_position_takes_what_answers_take(name: str, tmp_path: Path) -> None:
    case, budget = case_of(name, tmp_path), Budget(10**5)
    engine = Engine(case.model().float().requires_grad_(False), case.processor, family=case.family)
    running, prompt = engine.run_together(BatchLimits(budget)), case.processor.prompt(case.records[0])
    with engine.inference():
        running.add([0], [AnswerRequest(prompt, GreedySettings(max_new_tokens=8), record_stream(0, 0))])
        running.step()
    [cache] = budget.caches
    assert position_bytes(engine) == pytest.approx(cache.bytes / cache.positions, abs=1)


def _pretended(engine: Engine, free: int | None) -> Any:
    """What is free of memory where this much is said to be free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "free_memory_bytes", lambda device: free)
        return free_room(engine)


def test_what_is_taken_leaves_a_quarter_of_the_free_memory(engine: Engine) -> None:
    each = position_bytes(engine)
    found = _pretended(engine, FREE)
    assert found.free_bytes == FREE
    assert 0.75 * FREE - each < found.positions * each <= 0.75 * FREE
    assert _pretended(engine, None) is None


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"pipe": 2}])
def test_ranks_that_hold_a_model_together_take_what_the_fullest_of_them_can(layout: dict[str, Any]) -> None:
    def look() -> tuple[int, Any]:
        engine = make_engine("chatglm2", layout)
        return position_bytes(engine), _pretended(engine, FREE * (1 + engine.mesh.rank("all")))

    (each, found), second = run_ranks(2, look)
    assert second == (each, found)
    assert found == _room_of(FREE, each)
    assert each < position_bytes(make_engine("chatglm2", None))


def _room_of(free: int, each: int) -> room.CacheRoom:
    return room.CacheRoom(int(free * 0.75) // each, free)


def test_a_card_with_little_memory_gets_fewer_positions_and_that_is_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    most = Limits().cache_tokens
    for free, expected in ((10**12, most), (None, most), (FREE, _pretended(engine, FREE).positions), (1, 16)):
        monkeypatch.setattr(room, "free_memory_bytes", lambda device, free=free: free)
        assert serve._within_memory(Limits(rows=3), engine) == Limits(rows=3, cache_tokens=expected)
        assert (f"KV cache: {expected:,} positions" in capsys.readouterr().err) == (expected < most)


def test_the_command_measures_it_where_no_option_says_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Limits] = []
    monkeypatch.setattr("hanlin.serve.server.serve_until_signal", lambda service, *_: served.append(service.limits))
    monkeypatch.setattr(room, "free_memory_bytes", lambda device: FREE)
    for option in ([], ["--max-cache-tokens", "70000"]):
        assert main(["serve", "--base", str(base), "--port", "0", *option]) == 0
    measured, said = (limits.cache_tokens for limits in served)
    assert 16 < measured < Limits().cache_tokens
    assert said == 70000


def test_an_accelerator_tells_what_is_free_and_what_its_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"mem_get_info": lambda _: (700, 1000), "memory_reserved": lambda _: 300, "memory_allocated": lambda _: 250}
    monkeypatch.setattr(torch, "xpu", SimpleNamespace(**card))
    assert free_memory_bytes(torch.device("xpu")) == 750
    monkeypatch.setattr(torch, "xpu", SimpleNamespace())
    assert free_memory_bytes(torch.device("xpu")) is None
