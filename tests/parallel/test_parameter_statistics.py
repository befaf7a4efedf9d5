"""Statistics of weights and gradients: torch's own numbers, and the same under every layout."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from cases import CASES, make_batch, make_model
from ranks import run_ranks
from test_layouts import own_rows, world_of

from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings

SCALE = 1024.0
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "tensor, sharded": {"data": 2, "tensor": 2, "shard": "parameters"},
    "copies of shares": {"data": 4, "shard": "gradients", "shard_ranks": 2},
    # The embedding of this family is its head too, so both ends of the pipe hold it.
    "pipe": {"pipe": 2, "tensor": 2, "micro_batches": 2},
}


def statistics(layout: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    case = CASES["cpm_bee"]
    parallel_model = parallelize(make_model(case, "full"), torch.device("cpu"), "fp32", ParallelSettings(**layout))
    batch = make_batch(case)
    batch = replace(batch, weights=batch.weights.double())
    parts = parallel_model.split(own_rows(batch, parallel_model), 2)
    parallel_model.forward_backward(parts, [batch.loss_tokens] * len(parts), SCALE)
    found = parallel_model.parameter_statistics(SCALE)
    if not layout:
        for name, weight in parallel_model.parameters.items():
            assert weight.grad is not None
            for told, tensor in ((found[name].weight, weight.detach()), (found[name].gradient, weight.grad / SCALE)):
                expected = (tensor.max(), tensor.min(), tensor.std() if tensor.numel() > 1 else 0.0, tensor.mean())
                assert told is not None
                assert astuple(told) == pytest.approx([float(number) for number in expected], rel=1e-9, abs=1e-12)
    return {name: (astuple(one.weight), one.gradient and astuple(one.gradient)) for name, one in found.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_those_of_one_process_on_every_rank(layout: str) -> None:
    alone = statistics({})
    for found in run_ranks(world_of(ParallelSettings(**LAYOUTS[layout])), statistics, LAYOUTS[layout]):
        assert found.keys() == alone.keys()
        for name, (weight, gradient) in alone.items():
            assert found[name][0] == pytest.approx(weight, rel=1e-9, abs=1e-12), name
            assert found[name][1] == pytest.approx(gradient, rel=1e-8, abs=1e-12), name


def test_a_weight_that_is_not_finite_shows_in_all_its_numbers() -> None:
    model = make_model(CASES["cpm1"], "full")
    parallel_model = parallelize(model, torch.device("cpu"))
    name, weight = next(iter(parallel_model.parameters.items()))
    with torch.no_grad():
        weight[0, 0] = math.nan
    told = parallel_model.parameter_statistics()[name]
    assert all(map(math.isnan, astuple(told.weight)))
    assert told.gradient is None
