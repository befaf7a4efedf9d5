"""Every family, tuning method and layout against one process: loss, norm and all gradients, by the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import CASES, Case, make_batch, make_model
from ranks import run_ranks

from hanlin.core.batch import Batch
from hanlin.core.settings import ParallelSettings
from hanlin.parallel.mesh import Degrees
from hanlin.parallel.place import Worker, place

SHARDED = {"shard": "parameters"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "2x1x1": {"data": 2},
    "2x1x1 gradients": {"data": 2, "shard": "gradients"},
    "2x1x1 parameters": {"data": 2, **SHARDED},
    "1x2x1": {"tensor": 2},
    "1x1x2": {"pipe": 2},
    "2x2x1": {"data": 2, "tensor": 2, **SHARDED},
    "2x1x2": {"data": 2, "pipe": 2, **SHARDED},
    "1x2x2": {"tensor": 2, "pipe": 2},
    "2x2x2": {"data": 2, "tensor": 2, "pipe": 2, **SHARDED},
}
FURTHER: dict[str, dict[str, Any]] = {
    "shared heads": {"tensor": 4},
    "sequence": {"tensor": 2, "sequence_parallel": True},
    "gpipe": {"pipe": 2, "schedule": "gpipe"},
    "interleaved": {"pipe": 2, "schedule": "interleaved"},
    "interleaved, sharded": {"data": 2, "pipe": 2, "schedule": "interleaved", **SHARDED},
    "hybrid": {"data": 4, "shard_ranks": 2, **SHARDED},
    "offload": {"data": 2, "offload": True, **SHARDED},
    "recomputed": {"tensor": 2, "checkpoint_activations": "full"},
    "some recomputed": {"tensor": 2, "checkpoint_activations": "selective"},
    "recomputed in a pipe": {"data": 2, "pipe": 2, "checkpoint_activations": "full", **SHARDED},
}
WHOLE = ("cpm_bee", "cpm2")
METHODS = {
    "cpm_bee": ("full", "lora", "prefix"),
    "chatglm2": ("full", "lora", "prefix"),
    "cpm1": ("full", "lora", "prefix"),
    "cpm1_t5": ("full", "lora"),
    "cpm2": ("full", "lora"),
}
# 8 processes take long on few cores, and each family is cut, divided and sharded in the others.
MATRIX = [(family, layout) for family in METHODS for layout in LAYOUTS if layout != "2x2x2" or family in WHOLE]


def world_of(settings: ParallelSettings) -> int:
    return (settings.data or 1) * settings.tensor * settings.pipe


def own_rows(batch: Batch, worker: Worker) -> Batch:
    count = worker.data_ranks
    return batch.split(count)[worker.mesh.rank("data")]


def compute(case: Case, method: str, settings: ParallelSettings, dtype: torch.dtype, rows: int = 2) -> dict[str, Any]:
    """What one rank gets: loss, norm and loss without gradient, over all ranks; the gradients that it holds."""
    worker = place(
        make_model(case, method, dtype),
        torch.device("cpu"),
        "fp32",
        settings,
        copy=lambda: make_model(case, method, dtype),
    )
    batch = make_batch(case)
    batch = Batch(batch.inputs, batch.labels, batch.weights.to(dtype), batch.rows)
    mine = own_rows(batch, worker)
    parts = worker.split(mine, rows)
    losses = worker.forward_backward(parts, [batch.loss_tokens] * len(parts))
    (loss,) = worker.sum_over_data([sum(losses)])
    gradients = {name: weight.grad for name, weight in worker.parameters.items() if weight.grad is not None}
    (silent,) = worker.sum_over_data([worker.losses(mine).sum().item()])
    return {
        "loss": loss,
        "silent": silent / batch.loss_tokens,
        "norm": worker.grad_norm(),
        "gradients": {name: whole(gradient).clone() for name, gradient in gradients.items()},
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def compare(family: str, methods: Sequence[str], layout: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    case, settings, alone = CASES[family], ParallelSettings(**layout), ParallelSettings()
    together = run_ranks(world_of(settings), compute_all, case, methods, settings, dtype)
    for method in methods:
        expected = compute(case, method, alone, dtype)
        _compare(expected, [results[method] for results in together], tolerance)


def compute_all(
    case: Case, methods: Sequence[str], settings: ParallelSettings, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    return {method: compute(case, method, settings, dtype) for method in methods}


def _compare(expected: dict[str, Any], results: Sequence[dict[str, Any]], tolerance: float) -> None:
    for result in results:
        for number in ("loss", "silent", "norm"):
            assert result[number] == pytest.approx(expected[number], rel=tolerance), number
        for name, gradient in result["gradients"].items():
            difference = (gradient - expected["gradients"][name]).abs().max()
            assert difference <= tolerance * expected["norm"], (name, difference)
    assert {name for result in results for name in result["gradients"]} == set(expected["gradients"])


@pytest.mark.parametrize(("family", "layout"), MATRIX)
def test_a_layout_changes_no_number(family: str, layout: str) -> None:
    compare(family, METHODS[family], LAYOUTS[layout], torch.float64, 1e-12)


@pytest.mark.parametrize("layout", FURTHER)
def test_nor_does_what_else_can_be_set(layout: str) -> None:
    compare("chatglm2", ["full"], FURTHER[layout], torch.float64, 1e-12)


@pytest.mark.parametrize("layout", ["2x1x1", "1x2x1", "1x1x2"])
def test_in_single_precision_numbers_differ_by_rounding_only(layout: str) -> None:
    compare("cpm_bee", ["full"], LAYOUTS[layout], torch.float32, 1e-6)


@pytest.mark.parametrize(
    ("settings", "world", "degrees"),
    [
        ({}, 4, Degrees(replicate=4)),
        ({"tensor": 2}, 4, Degrees(replicate=2, tensor=2)),
        ({"shard": "parameters"}, 4, Degrees(shard=4)),
        ({"shard": "gradients", "shard_ranks": 2, "pipe": 2}, 8, Degrees(2, 2, 2, 1)),
    ],
)
def test_data_ranks_are_those_that_are_left(settings: dict[str, Any], world: int, degrees: Degrees) -> None:
    assert Degrees.of(ParallelSettings(**settings), world) == degrees
