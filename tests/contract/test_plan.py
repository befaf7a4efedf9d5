"""Of a plan: what it names is there, and divided as it says the model computes the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from family_cases import Case
from ranks import run_ranks
from torch import nn

from hanlin.parallel.parallelize import parallelize
from hanlin.parallel.tensor import division_problems
from hanlin.recipe.settings import ParallelSettings


def test_its_parts_are_modules_of_the_model(case: Case) -> None:
    model = case.empty()
    plan = model.plan
    children = dict(model.named_children())
    assert {*plan.first, *plan.blocks, *plan.last, *plan.shared} <= children.keys()
    assert plan.first
    assert plan.last


def test_its_blocks_are_numbered_from_0(case: Case) -> None:
    model = case.empty()
    assert model.plan.blocks
    for name in model.plan.blocks:
        blocks = getattr(model, name)
        assert isinstance(blocks, nn.ModuleDict), name
        assert list(blocks) == [str(number) for number in range(len(blocks))], name


def test_every_weight_is_in_one_of_its_parts(case: Case) -> None:
    model = case.empty()
    plan = model.plan
    parts = {*plan.first, *plan.blocks, *plan.last, *plan.shared}
    assert [name for name, _ in model.named_parameters() if name.partition(".")[0] not in parts] == []


def test_its_patterns_name_modules_with_weights(case: Case) -> None:
    model = case.empty()
    idle = [pattern for pattern in (*model.plan.tensor, *model.plan.whole) if not list(matching(model, pattern))]
    assert idle == []
    assert set(model.plan.whole) <= set(model.plan.tensor)
    for pattern in model.plan.tensor:
        assert all(list(module.parameters()) for _, module in matching(model, pattern)), pattern


def test_its_heads_have_the_size_that_it_says(case: Case) -> None:
    model = case.empty()
    heads = {"query": getattr(case.config, "num_heads", None)}
    heads["kv"] = getattr(case.config, "num_kv_heads", heads["query"])
    for pattern, split in model.plan.tensor.items():
        if split in heads:
            for name, module in matching(model, pattern):
                assert module.weight.shape[0] % model.plan.head_dim == 0, name
                assert heads[split] in (None, module.weight.shape[0] // model.plan.head_dim), name


@pytest.mark.parametrize("sequence", [False, True], ids=["", "along the text too"])
def test_two_tensor_ranks_have_the_loss_and_the_gradients_of_one(case: Case, sequence: bool) -> None:
    if problems := list(division_problems(case.empty(), 2)):
        pytest.skip(f"{problems[0][0]}: {problems[0][1]}")
    settings = ParallelSettings(tensor=2, sequence_parallel=sequence)
    alone = trained_once(case, ParallelSettings())
    for loss, gradients in run_ranks(2, lambda: trained_once(case, settings)):
        assert loss == pytest.approx(alone[0], rel=1e-5)
        torch.testing.assert_close(gradients, alone[1], rtol=1e-4, atol=1e-5)


def trained_once(case: Case, settings: ParallelSettings) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the case's batch and the whole gradients."""
    parallel_model = parallelize(case.model(), torch.device("cpu"), settings=settings)
    [loss] = parallel_model.forward_backward([case.batch()], [1.0]).losses
    gradients = {name: weight.grad for name, weight in parallel_model.parameters.items() if weight.grad is not None}
    return loss, {name: getattr(one, "full_tensor", lambda one=one: one)().clone() for name, one in gradients.items()}


def matching(model: nn.Module, pattern: str) -> Iterator[tuple[str, Any]]:
    regex = re.escape(pattern).replace(r"\*", r"\d+")
    return ((name, module) for name, module in model.named_modules() if re.fullmatch(regex, name))
