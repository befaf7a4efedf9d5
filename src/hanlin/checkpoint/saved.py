"""Which checkpoints a run must have: `saved.checkpoints.json` beside their folder, which tells when that is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, replaced_file

__all__ = ["CHECKPOINTS", "SavedSteps", "checkpoint_folders", "lost_checkpoints", "read_saved", "refuse_lost"]

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in its run folder."""


@dataclass(frozen=True)
class SavedSteps:
    """The steps of the checkpoints that are kept, and of the best one of them."""

    steps: tuple[int, ...]
    best: int | None

    def write(self, folder: Path) -> None:
        """folder: of the checkpoints."""
        with replaced_file(_path(folder)) as stream:
            stream.write(json.dumps({"steps": self.steps, "best": self.best}).encode())


def read_saved(folder: Path) -> SavedSteps | None:
    """None where nothing was saved.

    Raises: CheckpointError when it cannot be read.
    """
    path = _path(folder)
    if not path.is_file():
        return None
    values = read_json_object(path)
    steps, best = values.get("steps"), values.get("best")
    if not isinstance(steps, list) or not all(type(step) is int for step in [*steps, best or 0]):
        raise CheckpointError(f"{path}: the steps of checkpoints are expected; restore it from a copy")
    return SavedSteps(tuple(steps), best)


def lost_checkpoints(folder: Path) -> list[int]:
    """The steps of checkpoints that must be in a folder and are not.

    Raises: CheckpointError as `read_saved`.
    """
    saved, there = read_saved(folder), {int(path.name) for path in checkpoint_folders(folder)}
    return [] if saved is None else [step for step in saved.steps if step not in there]


def refuse_lost(folder: Path) -> None:
    """See that of the checkpoints that were saved at least one is there; else the run would begin again unasked.

    Raises: CheckpointError saying what to do.
    """
    signs = [path.name for path in (_path(folder), folder.with_name("last")) if path.exists()]
    if signs and not checkpoint_folders(folder):
        raise CheckpointError(
            f"{folder.parent}: its run has saved checkpoints ({signs[0]} says so), but {folder} holds none; "
            "restore that folder from a copy, or begin anew with --restart, which keeps what else is there in former/"
        )


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in their folder, whole or damaged, the oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _path(folder: Path) -> Path:
    return folder.with_name(f"saved.{folder.name}.json")
