"""Further places for a run's metrics, each through its own package: TensorBoard, Weights & Biases, SwanLab.

Their own environment variables (offline mode, keys) work as their documentation says.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from hanlin.core.errors import ConfigError

PROJECT = "hanlin"


class Tracker(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: Iterable[str], folder: Path, first_step: int) -> list[Tracker]:
    """Trackers for the run in `folder`, which has done `first_step` steps so far.

    Raises: ConfigError when a package is not installed.
    """
    kinds = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases, "swanlab": _SwanLab}
    names = tuple(names)
    check_trackers(names)
    return [kinds[name](folder, first_step) for name in names]


def check_trackers(names: Iterable[str]) -> None:
    """Find out, without loading them, whether the packages are installed.

    Raises: ConfigError.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"run.trackers: {', '.join(missing)} is not installed; pip install 'hanlin[{','.join(missing)}]', "
            "or leave it out (metrics.jsonl is always written)"
        )


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, first_step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # optional

        del first_step  # what it has of later steps it keeps
        self._run: Any = wandb.init(
            project=PROJECT, name=folder.name, dir=str(folder), id=_run_id(folder / "wandb"), resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _SwanLab:
    def __init__(self, folder: Path, first_step: int) -> None:
        import swanlab  # pyright: ignore[reportMissingImports]  # optional

        del first_step
        self._package: Any = swanlab
        swanlab.init(project=PROJECT, experiment_name=folder.name, logdir=str(folder / "swanlab"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        self._package.finish()


def _run_id(folder: Path) -> str:
    """The same name for all parts of a run that was resumed."""
    path = folder / "run_id"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text()
