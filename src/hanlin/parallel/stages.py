"""A model cut into the stages of a pipeline: runs of blocks. Without torch's schedules, which take long to load."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan


def cut(model: nn.Module, stage: int, stages: int) -> nn.Module:
    """Take away what other stages have; the names of what stays do not change.

    Raises: ConfigError when there are fewer blocks than stages.
    """
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    own = set(stage_blocks(model, stages)[stage])
    for blocks in plan.blocks:
        for name in list(getattr(model, blocks)):
            if f"{blocks}.{name}" not in own:
                del getattr(model, blocks)[name]
    stays = {*(plan.first if stage == 0 else ()), *(plan.last if stage == stages - 1 else ()), *plan.shared}
    for name in {*plan.first, *plan.last} - stays:
        setattr(model, name, None)
    return model


def stage_blocks(model: nn.Module, stages: int) -> list[list[str]]:
    """The names of each stage's blocks: runs of nearly equal cost. A parameter costs 1, also one of the head.

    Raises: ConfigError when there are fewer blocks than stages.
    """
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    names = [f"{blocks}.{name}" for blocks in plan.blocks for name in getattr(model, blocks)]
    if len(names) < stages:
        raise ConfigError(f"parallel.pipe: {len(names)} blocks cannot be cut into {stages} stages; use fewer")
    costs = [_size(model.get_submodule(name)) for name in names]
    bounds = cut_costs(costs, stages, sum(_size(getattr(model, name)) for name in plan.last))
    return [names[begin:end] for begin, end in pairwise(bounds)]


def cut_costs(costs: Sequence[int], stages: int, last: int = 0) -> list[int]:
    """Bounds `[stages + 1]` of runs, none empty, whose greatest cost is least; the last run costs `last` more."""
    count = len(costs)
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # best[n][end]: the least greatest cost of n runs of the first `end` blocks, and the bounds that give it.
    best: list[tuple[float, list[int]]] = [(0 if end == 0 else float("inf"), [0]) for end in range(count + 1)]
    for number in range(1, stages + 1):
        extra = last if number == stages else 0
        best = [
            min(
                (
                    (max(best[begin][0], sums[end] - sums[begin] + extra), [*best[begin][1], end])
                    for begin in range(end)
                ),
                default=(float("inf"), [0]),
            )
            for end in range(count + 1)
        ]
    return best[count][1]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
