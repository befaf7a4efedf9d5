"""No operation of a step adds up numbers in an order that CUDA leaves open, by torch's own list: those of the list that
are called bring at most one number to a place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from layouts import VARIANTS, Cell, loader, model_of
from sampled import sampled
from torch.utils._python_dispatch import TorchDispatchMode

from hanlin.core.batch import IGNORED, Batch
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.objectives.dpo import Dpo, DpoSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

OPEN_ORDER = {
    "index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_copy",
    "index_copy_", "put_", "histc", "bincount", "median", "cumsum",
}  # fmt: skip
"""Of torch 2.13's `use_deterministic_algorithms` what a language model could call; cumsum of floating point only."""
INDEXED = {"index_add", "index_add_", "scatter_add", "scatter_add_", "index_copy", "index_copy_"}
"""Called with a tensor, a dimension and places in it."""


def meets_itself(name: str, dim: int, places: torch.Tensor) -> bool:
    """Whether several numbers come to one place."""
    ordered = places.sort(dim if name.startswith("scatter") else 0).values
    return bool((ordered.diff(dim=dim if name.startswith("scatter") else 0) == 0).any())


class Called(TorchDispatchMode):
    """The operations of `OPEN_ORDER` that were called with floating point numbers, and let some of them meet."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, first = func._schema.name.removeprefix("aten::"), next(iter(args), None)
        is_open = name in OPEN_ORDER and isinstance(first, torch.Tensor) and first.is_floating_point()
        if is_open and (name not in INDEXED or meets_itself(name, args[1], args[2])):
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def called_in_a_step(cell: Cell, change: Callable[[Batch], Batch] | None = None, **given: Any) -> set[str]:
    batch = next(iter(loader(cell, 0, 1)))
    trained = parallelize(copy.deepcopy(model_of(cell)).float(), torch.device("cpu"))
    settings = TrainSettings(steps=10, lr=1e-3)
    step = Step(trained, build_optimizer(trained.parameters, settings.optimizer), settings, 10, **given)
    with Called() as called:
        step.run(batch if change is None else change(batch))
    return called.names


CELLS = [(name, rows) for name, one in VARIANTS.items() if not one.has_experts for rows in ("single", "packed")]


@pytest.mark.parametrize(("variant", "rows"), sampled(CELLS, [*CELLS[::4], *CELLS[3::4]]))  # single and packed by turns
def test_a_step_adds_in_one_order(variant: str, rows: Any) -> None:
    for method in VARIANTS[variant].methods[:2]:
        assert not called_in_a_step(Cell(variant, method, rows, "none")), method


def test_a_step_that_compares_answers_adds_in_one_order() -> None:
    def paired(batch: Batch) -> Batch:
        places = (batch.labels != IGNORED).cumsum(1)
        answers = torch.where(batch.labels == IGNORED, 0, 1 + (places > places[:, -1:] // 2))
        return replace(batch, answers=answers, weights=(answers > 0).float(), rows=[[n] for n in range(batch.size)])

    cell = Cell("chatglm2", "lora", "single", "none")
    assert not called_in_a_step(cell, paired, objective=Dpo(DpoSettings(loss="orpo")))


def test_what_meets_is_found() -> None:
    with Called() as called:
        weight = torch.zeros(3, 2, requires_grad=True)
        weight.index_select(0, torch.tensor([2, 1])).sum().backward()
        torch.zeros(2).scatter_add(0, torch.tensor([1, 0]), torch.ones(2))
        torch.arange(3).cumsum(0)
        assert not called.names
        weight.index_select(0, torch.tensor([1, 1])).sum().backward()
        torch.zeros(2, 3).scatter_add(1, torch.tensor([[0, 0], [1, 0]]), torch.ones(2, 2))
        torch.ones(3).cumsum(0)
    assert {name.rstrip("_") for name in called.names} == {"index_add", "scatter_add", "cumsum"}
