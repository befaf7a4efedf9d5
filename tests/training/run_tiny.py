"""Train the tiny model in the folder given on the command line; for tests that end the process from outside."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tiny_model import TinyLoader, make_batch, tiny_model

from hanlin.checkpoint.state import Checkpointer
from hanlin.core.logging import start_log
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.loop import Outcome, count_steps, train
from hanlin.training.objectives.likelihood import mean_loss
from hanlin.training.optimizer import build_optimizer
from hanlin.training.run_checkpoints import RunCheckpoints
from hanlin.training.run_logger import RunLogger
from hanlin.training.step import Step


def run(folder: Path, *, with_eval: bool = True, held: int | None = None, **settings) -> tuple[Outcome, Step]:
    """Train with dropout, so that the random numbers matter, and from whatever checkpoint there is.

    held: number of the step whose batch does not come before the file `go_on` is there.
    """
    made = TrainSettings(**{"steps": 12, "lr": 0.02, "eval_every": 4, "save_every": 3, "warmup_steps": 2, **settings})
    loader = TinyLoader()
    parallel_model = parallelize(tiny_model(dropout=0.2), torch.device("cpu"), made.precision)
    optimizer = build_optimizer(parallel_model.parameters, made.optimizer)
    step = Step(parallel_model, optimizer, made, count_steps(made, loader))
    checkpoints = RunCheckpoints(
        folder, step, loader, Checkpointer(folder / "checkpoints", made.keep), _exporter(parallel_model.model)
    )
    if held is not None:
        forever = loader.forever
        loader.forever = lambda: (_hold(folder, loader.number == held) or batch for batch in forever())
    evaluate = (lambda: {"loss": mean_loss(parallel_model, [make_batch(99)])}) if with_eval else None
    outcome = train(
        step, loader, settings=made, checkpoints=checkpoints, logger=RunLogger(folder, log_every=4), evaluate=evaluate
    )
    return outcome, step


def _hold(folder: Path, is_held: bool) -> None:
    while is_held and not (folder / "go_on").exists():
        time.sleep(0.01)


def _exporter(model: torch.nn.Module):
    def export(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "model.pt")

    return export


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, steps, held_, optimizer = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    start_log(folder)
    sys.exit(run(folder, steps=steps, held=held_, optimizer=optimizer)[0].exit_code)
