"""Every family on eight ranks (2x2x2): one is killed, the run goes on under another layout with the same losses."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case, make_batch, make_model
from ranks import run_ranks
from sampled import sampled
from torch import distributed

from hanlin.checkpoint.state import Checkpointer
from hanlin.core.batch import Batch
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings, TrainSettings
from hanlin.training.loop import train
from hanlin.training.optimizer import build_optimizer
from hanlin.training.run_checkpoints import RunCheckpoints
from hanlin.training.run_logger import RunLogger
from hanlin.training.step import Step

STEPS, KILLED_AT = 10, 5
ALL = ParallelSettings(data=2, tensor=2, pipe=2, shard="parameters", micro_batches=2)
OTHERS = {
    "cpm_bee": ParallelSettings(data=2, shard="gradients"),
    "chatglm2": ParallelSettings(pipe=2, tensor=2, micro_batches=2),
    "cpm1": ParallelSettings(tensor=4),
    "cpm1_t5": ParallelSettings(),
    "cpm2": ParallelSettings(data=2, pipe=2, micro_batches=2),
}


class Batches:
    """Two batches in turns, the same for any number of ranks; `killed_at`: rank 5 dies before it gets that one."""

    def __init__(self, case: Case, parallel_model: ParallelModel, killed_at: int | None) -> None:
        self.case, self.parallel_model, self.killed_at = case, parallel_model, killed_at
        self.number = 0

    def forever(self) -> Iterator[Batch]:
        while True:
            if self.number == self.killed_at and distributed.get_rank() == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            batch = make_batch(self.case, seed=self.number % 2)
            batch = replace(batch, weights=batch.weights.double())
            self.number += 1
            yield batch.split(self.parallel_model.data_ranks)[self.parallel_model.mesh.rank("data")]

    def where(self, batch: Batch) -> list[str]:
        return [str(row) for row in batch.rows]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def run(family: str, folder: Path, layout: ParallelSettings, killed_at: int | None = None) -> None:
    case, settings = CASES[family], TrainSettings(steps=STEPS, lr=1e-2, schedule="constant", save_every=2)
    parallel_model = parallelize(make_model(case, "full"), torch.device("cpu"), "fp32", layout)
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, STEPS)
    batches = Batches(case, parallel_model, killed_at)
    checkpoints = RunCheckpoints(folder, step, batches, Checkpointer(folder / "checkpoints"), lambda _: None)
    train(
        step,
        batches,
        settings=settings,
        checkpoints=checkpoints,
        logger=RunLogger(folder, writes=parallel_model.mesh.is_main),
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("family", sampled(list(CASES), ["cpm2"]))
def test_a_killed_run_goes_on_under_another_layout(family: str, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    run_ranks(1, run, family, alone, ParallelSettings())
    with pytest.raises(AssertionError, match="rank 5: -9"):
        run_ranks(8, run, family, killed, ALL, KILLED_AT)
    other = OTHERS[family]
    run_ranks((other.data or 1) * other.tensor * other.pipe, run, family, killed, other)
    assert len(losses(alone)) == STEPS
    assert losses(killed) == pytest.approx(losses(alone), rel=1e-9)
    assert losses(alone)[-2] < 0.98 * losses(alone)[0]
