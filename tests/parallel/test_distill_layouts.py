"""Imitating a teacher under layouts: reports and weights are those of one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case, make_batch, make_model
from ranks import run_ranks
from test_layouts import own_rows, whole

from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings, TrainSettings
from hanlin.training.objective import RunStart, build_objective
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

CPU = torch.device("cpu")
LAYOUTS: dict[str, Sequence[dict[str, Any]]] = {
    "chatglm2": [{"data": 2, "shard": "parameters"}, {"data": 2, "tensor": 2}],
    "cpm_bee": [{"tensor": 2}],
}


def train(case: Case, layout: dict[str, Any], how: dict[str, Any]) -> tuple[list[tuple[float, ...]], dict[str, Any]]:
    settings = TrainSettings(
        steps=2, lr=0.004, schedule="constant", micro_batch_size=2, objective={"name": "distill", "teacher": "t", **how}
    )
    parallel_model = parallelize(make_model(case, "full"), CPU, "fp32", ParallelSettings(**layout))
    teacher, draw = make_model(case, "full").requires_grad_(False), torch.Generator().manual_seed(7)
    for weight in teacher.parameters():
        weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.3)
    divided = parallelize(teacher, CPU, "fp32", ParallelSettings(tensor=layout.get("tensor", 1)))
    objective = build_objective(settings.objective)
    objective.begin(parallel_model, {}, RunStart(Path(), teacher=divided))
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(parallel_model, optimizer, settings, 2, objective=objective)
    found, batch = [], own_rows(make_batch(case, 0), parallel_model)
    for _ in range(2):
        report = step.run(batch)
        found.append((report.loss, report.grad_norm, report.loss_tokens, *report.measures.values()))
    found.append(tuple(objective.evaluate(parallel_model, [batch], 2).values()))
    return found, {name: whole(weight.detach()).clone() for name, weight in parallel_model.parameters.items()}


@pytest.mark.parametrize(("family", "divergence"), [("chatglm2", "forward"), ("cpm_bee", "reverse")])
def test_a_layout_changes_nothing(family: str, divergence: str) -> None:
    case, how = CASES[family], {"divergence": divergence, "temperature": 1.5, "share": 0.6}
    expected, weights = train(case, {}, how)
    assert expected[0][4] > 0.01  # it is elsewhere than its teacher
    for layout in LAYOUTS[family]:
        for found, others in run_ranks(layout.get("data", 1) * layout.get("tensor", 1), train, case, layout, how):
            assert found == [pytest.approx(values, rel=2e-4, abs=1e-5) for values in expected]
            for name, weight in others.items():
                torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)
