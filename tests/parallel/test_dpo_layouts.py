"""Learning from preferences under layouts: reports, reference and weights are those of one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, ROWS, Case, make_batch, make_model
from ranks import run_ranks
from test_layouts import own_rows, whole

from hanlin.core.batch import Batch
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings, TrainSettings
from hanlin.training.objective import RunStart, build_objective
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

LAYOUTS: dict[str, Sequence[dict[str, Any]]] = {
    "chatglm2": [{"data": 2, "shard": "parameters"}, {"data": 2, "tensor": 2}],
    "cpm2": [{"tensor": 2}],
    "cpm_bee": [{"data": 2, "pipe": 2}],
}


def pairs_of(case: Case, answers: int) -> Batch:
    """A pair in each row but the last, which has two; some positions belong to nobody."""
    batch = make_batch(case, 0)
    numbers = torch.tensor([0, 1, 1, 2, 2, answers]).expand(ROWS, -1).clone()
    numbers[-1] = torch.tensor([1, 1, 2, 3, 3, 4]) if answers == 2 else torch.tensor([1, 2, 3, 4, 5, 6])
    weights = (numbers > 0).float()
    rows = [*([number] for number in range(ROWS - 1)), [ROWS - 1, ROWS]]
    return replace(batch, answers=numbers * (batch.labels >= 0), weights=weights, rows=rows)


@dataclass
class Rows:
    """A loader of one batch."""

    batch: Batch
    parallel_model: ParallelModel

    class prepared:  # noqa: N801 as the attribute of a loader
        lengths = np.zeros(ROWS + 1)
        identity = "rows"

    def steps_per_epoch(self) -> int:
        return 1

    def once(self) -> Iterator[Batch]:
        yield own_rows(self.batch, self.parallel_model)


def train(
    case: Case, answers: int, layout: dict[str, Any], folder: Path
) -> tuple[list[tuple[float, ...]], dict[str, Any]]:
    how = {"name": "kto" if answers == 3 else "dpo", "beta": 2}
    settings = TrainSettings(steps=2, lr=0.004, schedule="constant", micro_batch_size=2, objective=how)
    parallel_model = parallelize(
        make_model(case, "lora"),
        torch.device("cpu"),
        "fp32",
        ParallelSettings(**layout),
        copy=lambda: make_model(case, "lora"),
    )
    objective = build_objective(settings.objective)
    loader: Any = Rows(pairs_of(case, answers), parallel_model)
    objective.begin(parallel_model, {"train": loader, "valid": loader}, RunStart(folder))
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(parallel_model, optimizer, settings, 2, objective=objective)
    found = []
    for _ in range(2):
        report = step.run(next(loader.once()))
        found.append((report.loss, report.grad_norm, report.loss_tokens, *report.measures.values()))
    found.append(tuple(objective.evaluate(parallel_model, loader.once(), 2).values()))
    return found, {name: whole(weight.detach()).clone() for name, weight in parallel_model.parameters.items()}


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_layout_changes_nothing(family: str, tmp_path: Path) -> None:
    case, answers = CASES[family], 3 if family == "cpm_bee" else 2
    expected, weights = train(case, answers, {}, tmp_path)
    assert expected[1][0] < expected[0][0]
    for layout in LAYOUTS[family]:
        world = layout.get("data", 1) * layout.get("tensor", 1) * layout.get("pipe", 1)
        for found, others in run_ranks(world, train, case, answers, layout, tmp_path):
            assert found == [pytest.approx(values, rel=2e-4, abs=1e-5) for values in expected]
            for name, weight in others.items():
                torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)
