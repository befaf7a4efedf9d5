"""`--timeout` holds for whatever ranks wait in: also where they are fewer than all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, make_model
from ranks import run_ranks
from torch import distributed

from hanlin.core.collectives import new_cpu_group
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings

LIMIT = 271
"""Seconds; nobody's default."""
LAYOUTS = [
    ("chatglm2", 4, {"tensor": 2, "data": 2}),
    ("chatglm2", 4, {"data": 4, "shard": "parameters", "shard_ranks": 2}),
    ("cpm1", 3, {"pipe": 3}),
]
"""The last one's first and last stage hold the same embedding, and talk about it without the one between them."""


def _limits(family: str, layout: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Of every group that this rank is of: how many it joins, and the seconds they wait for each other."""
    parallelize(make_model(CASES[family], "full"), torch.device("cpu"), "fp32", ParallelSettings(**layout))
    new_cpu_group()
    found = {}
    for group in distributed.distributed_c10d._world.pg_map:
        backend: Any = group._get_backend(torch.device("cpu"))
        found[group.group_name] = (group.size(), backend.options._timeout.total_seconds())
    return found


@pytest.mark.parametrize(("family", "world", "layout"), LAYOUTS)
def test_every_group_waits_as_long_as_all_ranks_do(family: str, world: int, layout: dict[str, Any]) -> None:
    ranks = run_ranks(world, _limits, family, layout, timeout_seconds=LIMIT)
    assert {size for limits in ranks for size, _ in limits.values()} >= {2, world}
    assert {seconds for limits in ranks for _, seconds in limits.values()} == {LIMIT}
