"""Experts over ranks: one process' numbers under every layout, through steps of the optimizer and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SHAPE, Case, _pair_inputs, make_batch, make_model
from ranks import run_ranks
from sampled import sampled
from test_layouts import _compare, compute, own_rows, world_of

from hanlin.checkpoint.state import Checkpointer
from hanlin.core.batch import Batch
from hanlin.core.errors import ConfigError
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2
from hanlin.parallel.mesh import Degrees
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings, TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

CONFIG = Cpm2Config(**{**SHAPE, "num_layers": 2}, ffn_size=24, init_std=0.3, num_experts=4)
CASE = Case(lambda: Cpm2(CONFIG), _pair_inputs, ("query", "gate"), "cpm2")
LAYOUTS: dict[str, dict[str, Any]] = {
    "no expert axis": {"data": 2},
    "no expert axis, sharded": {"data": 2, "shard": "parameters"},
    "2 ranks": {"data": 2, "expert": 2},
    "4 ranks": {"data": 4, "expert": 4},
    "copies": {"data": 4, "expert": 2},
    "sharded": {"data": 2, "expert": 2, "shard": "parameters"},
    "sharded copies": {"data": 4, "expert": 2, "shard": "gradients", "shard_ranks": 2},
    "divided": {"data": 2, "expert": 2, "tensor": 2},
    "in a pipe": {"data": 2, "expert": 2, "pipe": 2, "micro_batches": 1},
    "along the text": {"tensor": 2, "sequence_parallel": True},
    "along the text, recomputed": {
        "data": 2,
        "expert": 2,
        "tensor": 2,
        "sequence_parallel": True,
        "checkpoint_activations": "full",
    },
    "recomputed": {"data": 2, "expert": 2, "checkpoint_activations": "full"},
    "some recomputed": {"data": 2, "expert": 2, "checkpoint_activations": "selective"},
    "all axes": {"data": 2, "expert": 2, "tensor": 2, "pipe": 2, "micro_batches": 1, "shard": "parameters"},
}
OFTEN = (
    *("no expert axis", "4 ranks", "copies", "sharded", "sharded copies"),
    *("in a pipe", "along the text, recomputed", "some recomputed"),
)
"""Every value of every axis, every axis beside that of experts."""
SECOND: list[dict[str, Any]] = [{"data": 4, "expert": 4}, {"data": 4, "expert": 2, "shard": "parameters"}, {}]
STEPS = 12


@pytest.mark.parametrize("layout", sampled(list(LAYOUTS), OFTEN))
def test_experts_over_ranks_change_no_number(layout: str) -> None:
    settings, methods = ParallelSettings(**LAYOUTS[layout]), ("full", "lora") if layout == "copies" else ("full",)

    def compute_all(settings: ParallelSettings) -> list[dict[str, Any]]:
        return [compute(CASE, method, settings, torch.float64, rows=8) for method in methods]

    results = run_ranks(world_of(settings), compute_all, settings)
    for number, expected in enumerate(compute_all(ParallelSettings())):
        _compare(expected, [result[number] for result in results], 1e-12)


def train(folder: Path | None, first: int, last: int, layout: dict[str, Any]) -> dict[str, Any]:
    """The losses of the steps from `first` to `last`, and the weights after them; a folder goes on from its checkpoint
    and gets one."""
    settings, train = ParallelSettings(**layout), TrainSettings(steps=STEPS, lr=1e-2, schedule="constant")
    parallel_model = parallelize(make_model(CASE, "full"), torch.device("cpu"), "fp32", settings)
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, train.optimizer), train, STEPS)
    tensors = {**parallel_model.parameters, **step.optimizer.tensors()}
    checkpoints = None if folder is None else Checkpointer(folder)
    if checkpoints is not None and checkpoints.load_latest(tensors) is not None:
        step.updates = first
    losses = [step.run(own_rows(_batch(number), parallel_model)).loss for number in range(first, last)]
    if checkpoints is not None:
        checkpoints.save(last, tensors, {})
    return {"losses": losses, "weights": {name: weight.clone() for name, weight in parallel_model.gather()}}


def _batch(number: int) -> Batch:
    batch = make_batch(CASE, seed=number)
    return Batch(batch.inputs, batch.labels, batch.weights.double(), batch.rows)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train(None, 0, STEPS, {})


@pytest.mark.parametrize("world", sampled([2, 4], [2]))
def test_steps_on_several_processes_are_those_of_one(alone: dict[str, Any], world: int) -> None:
    sharded = run_ranks(world, train, None, 0, STEPS, {"expert": world})
    assert_same(sharded[0], alone, 0)


@pytest.mark.parametrize("second", sampled(SECOND, [SECOND[0], SECOND[2]]))
def test_a_run_on_two_processes_goes_on_on_any_other_number(
    tmp_path: Path, alone: dict[str, Any], second: dict[str, Any]
) -> None:
    run_ranks(2, train, tmp_path, 0, STEPS // 2, {"expert": 2})
    world = second.get("data", 1)
    (after, *_) = run_ranks(world, train, tmp_path, STEPS // 2, STEPS, second)
    assert_same(after, alone, STEPS // 2)


def assert_same(found: dict[str, Any], expected: dict[str, Any], first: int) -> None:
    # Adam enlarges the last digits, which differ, from step to step; another expert for one token shows in the third.
    assert found["losses"] == pytest.approx(expected["losses"][first:], rel=1e-10)
    assert set(found["weights"]) == set(expected["weights"])
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("case", "layout", "message"),
    [
        (CASE, {"expert": 3}, "expert: 4 experts cannot be divided among 3 ranks"),
        (Case(lambda: Cpm2(Cpm2Config(**SHAPE)), _pair_inputs, ()), {"expert": 3}, "no mixture of experts"),
        (CASE, {"expert": 3, "shard": "parameters", "offload": True}, "offload"),
    ],
)
def test_what_cannot_be_divided_is_refused(case: Case, layout: dict[str, Any], message: str) -> None:
    def refused() -> None:
        with pytest.raises(ConfigError, match=message):
            parallelize(case.make(), torch.device("cpu"), "fp32", ParallelSettings(**layout))

    run_ranks(3, refused)


def test_experts_are_divided_among_data_ranks() -> None:
    degrees = Degrees.of(ParallelSettings(expert=2, tensor=2), 8)
    assert degrees == Degrees(replicate=4, tensor=2, expert=2)
    assert degrees.copy == 2
    with pytest.raises(ConfigError, match=r"parallel\.expert: 3 does not divide the 4 data ranks"):
        Degrees.of(ParallelSettings(expert=3), 4)
