"""Where a run writes: whether it can, whether there is room, and whether another run is there."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from hanlin.core.errors import HanlinError
from hanlin.core.files import may_write
from hanlin.recipe.reading import Found
from hanlin.recipe.settings import Recipe
from hanlin.run.folder import Start, refuse_other_run
from hanlin.training.optimizer import WeightShape, find_optimizer

_FREE_BYTES = 100 << 20  # a run without a base needs at least this
_MATRIX = (1024, 1024)  # as good as any to tell how much an optimizer keeps beside it


def folder_problems(recipe: Recipe, start: Start = "resume") -> Found:
    for key, folder in (("run.folder", recipe.run.folder), ("data.cache", recipe.data.cache)):
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            yield key, f"{folder.absolute()} cannot be made: {existing} is a file; choose another folder"
        elif existing == existing.parent == folder.absolute():
            yield key, f"{folder} is the root of the file system; choose a folder in it"
        elif not may_write(existing):
            yield key, f"no permission to write into {existing}; choose another folder"
        elif key == "run.folder":
            try:
                refuse_other_run(recipe, start)
            except HanlinError as error:
                yield key, str(error)
            yield from _disk_space(recipe, existing)


def _disk_space(recipe: Recipe, folder: Path) -> Found:
    free, needed = shutil.disk_usage(folder).free, _least_bytes(recipe)
    if free < needed:
        yield (
            "run.folder",
            f"{folder} has {free / 1e9:,.1f} GB free, the run writes at least {needed / 1e9:,.1f} GB; "
            "free some space, choose another folder, or lower train.keep",
        )


def _least_bytes(recipe: Recipe) -> int:
    """A lower bound: a full run's checkpoints hold weights and the optimizer's state, `best` and `last` the weights."""
    base = recipe.model.base
    if base is None or not recipe.tuning.trains_base or not base.exists():
        return _FREE_BYTES
    files = [base] if base.is_file() else [*base.glob("*.safetensors"), *base.glob("*.bin"), *base.glob("*.pt")]
    weights = sum(file.stat().st_size for file in files)
    optimizer = recipe.train.optimizer
    of_matrix = find_optimizer(optimizer).state_bytes(optimizer, WeightShape(_MATRIX, _MATRIX))
    state = weights * of_matrix // (4 * math.prod(_MATRIX))
    return max(_FREE_BYTES, (weights + state) * (recipe.train.keep + 1) + 2 * weights)
