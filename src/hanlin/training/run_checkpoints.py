"""What a run leaves behind: checkpoints to go on from, and `last` and `best` to use."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from hanlin.checkpoint.state import Checkpointer, Saved, check_keys
from hanlin.core.batch import Batch
from hanlin.core.errors import CheckpointError
from hanlin.core.seeds import random_states, restore_random_states, seed_everything
from hanlin.training.step import Step

log = logging.getLogger(__name__)

_OPTIMIZER = "optimizer."


class Batches(Protocol):
    """What the loop needs of a `data.loader.Loader`."""

    def forever(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands: steps done, its best evaluation, and the evaluations since that were not better."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0

    def after_step(self) -> TrainProgress:
        return replace(self, step=self.step + 1)

    def after_evaluation(self, loss: float) -> TrainProgress:
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            return replace(self, best_loss=loss, best_step=self.step, worse=0)
        return replace(self, worse=self.worse + 1)

    @property
    def is_best(self) -> bool:
        """Whether the best evaluation is that of this very step."""
        return self.step == self.best_step


class RunCheckpoints:
    """Saves and restores a run, bitwise: weights, optimizer, schedule, scaler, random numbers, position in the data.

    export: writes the model to a folder, replacing what is there.
    """

    def __init__(
        self, folder: Path, step: Step, loader: Batches, checkpointer: Checkpointer, export: Callable[[Path], None]
    ) -> None:
        self.folder, self.step, self.loader = folder, step, loader
        self.checkpointer, self.write_model = checkpointer, export
        self._saved_step: int | None = None

    def resume(self) -> TrainProgress:
        """Restore the newest valid checkpoint; without any the run starts at its beginning.

        Raises: CheckpointError, DataError when the checkpoint belongs to another run or to other data.
        """
        saved = self.checkpointer.load_latest(self._tensors(), {"train.optimizer.name": _OPTIMIZER})
        if saved is None:
            return TrainProgress()
        values = saved.values
        like = {"progress": asdict(TrainProgress()), "step": self.step.values(), "loader": self.loader.state_dict()}
        check_keys(saved.path, values, {**like, "random": []})
        self.step.restore(values["step"])
        self.loader.load_state_dict(values["loader"])
        self._restore_random(values["random"], saved)
        self._saved_step = saved.step
        log.info("resumed at step=%d of %d from %s", saved.step, self.step.total_steps, self.checkpointer.folder)
        if saved.step >= self.step.total_steps:
            log.warning(
                "the run had come to its end, and there is nothing left to train; for more raise train.steps or "
                "train.epochs, and --restart begins anew"
            )
        progress = TrainProgress(**values["progress"])
        self.checkpointer.complete(saved.step, is_best=progress.is_best)
        return progress

    def save(self, progress: TrainProgress, position: dict[str, Any]) -> None:
        """Write a checkpoint of this step, if there is none yet.

        position: in the data, behind the batch of the step.
        """
        if self._saved_step == progress.step:
            return
        values = {
            "progress": asdict(progress),
            "step": self.step.values(),
            "loader": position,
            "random": self.step.parallel_model.mesh.gather("all", random_states(self.step.parallel_model.device)),
        }
        self.checkpointer.save(progress.step, self._tensors(), values, is_best=progress.is_best)
        self._saved_step = progress.step
        log.info("%s checkpoint step=%d", "saving" if self.checkpointer.in_background else "saved", progress.step)

    def wait(self) -> None:
        """Until the last checkpoint is on the disk."""
        self.checkpointer.wait()

    def export(self, name: str) -> None:
        """Write the model as it is to `last` or `best`.

        Raises: CheckpointError when the run folder is gone.
        """
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: was removed while the run was writing there")
        self.write_model(self.folder / name)
        log.info("wrote %s", self.folder / name)

    def _restore_random(self, states: list[dict[str, Any]], saved: Saved) -> None:
        """Each rank's own random numbers; under another layout new ones, which depend on the step."""
        parallel_model = self.step.parallel_model
        if len(states) == parallel_model.mesh.size("all"):
            own = states[parallel_model.mesh.rank("all")]
            check_keys(saved.path, own, random_states(parallel_model.device) | dict.fromkeys(own))
            try:
                restore_random_states(own, parallel_model.device)
            except (ValueError, TypeError, LookupError, RuntimeError) as error:
                raise CheckpointError(f"{saved.path}: not states of random numbers ({error})") from error
            return
        log.warning(
            "resumed on %d ranks, saved on %d: what is dropped is drawn anew",
            parallel_model.mesh.size("all"),
            len(states),
        )
        seed_everything(torch.initial_seed() + 1_000_003 * saved.step)

    def _tensors(self) -> dict[str, torch.Tensor]:
        weights = {f"model.{name}": weight.detach() for name, weight in self.step.parallel_model.saved.items()}
        state = {f"{_OPTIMIZER}{name}": tensor for name, tensor in self.step.optimizer.tensors().items()}
        return {**weights, **state}
