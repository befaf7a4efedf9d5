"""Where a run writes: whether it can, whether there is room, and whether another run is there."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hanlin.core.errors import ConfigError
from hanlin.core.files import may_write
from hanlin.recipe.reading import Found, dump_recipe, load_recipe, make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.train.optimizer import find_optimizer

_FREE_BYTES = 100 << 20  # a run without a base needs at least this
_MATRIX = (1024, 1024)  # as good as any to tell how much an optimizer keeps beside it

# What may change between two calls that continue the same run.
_CHANGEABLE = re.compile(
    r"(generate|evaluate)\..*|run\.(?!seed).*|data\.(cache|eval)"
    r"|parallel\..*|train\.(steps|epochs|micro_batch_size|eval_every|samples|patience|save_every|save_in_background|keep|max_skipped)"
)


def folder_problems(recipe: Recipe) -> Found:
    for key, folder in (("run.folder", recipe.run.folder), ("data.cache", recipe.data.cache)):
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            yield key, f"{folder.absolute()} cannot be made: {existing} is a file; choose another folder"
        elif not may_write(existing):
            yield key, f"no permission to write into {existing}; choose another folder"
        elif key == "run.folder":
            yield from _other_run(recipe)
            yield from _disk_space(recipe, existing)


def _other_run(recipe: Recipe) -> Found:
    folder = recipe.run.folder
    if not (folder / "config.yaml").is_file() or not any((folder / "checkpoints").glob("*")):
        return
    try:
        # Through the settings, so that one that came into being after that run has its default on both sides.
        there = _flat(load_recipe(folder).model_dump(mode="json"))
    except ConfigError as error:
        yield "run.folder", f"{folder} holds a run whose config.yaml cannot be read ({error}); choose another folder"
        return
    here = _flat(make_recipe(yaml.safe_load(dump_recipe(recipe))).model_dump(mode="json"))
    changed = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    changed = sorted(key for key in changed if not _CHANGEABLE.fullmatch(key))
    if changed:
        shown = "; ".join(f"{key}: {there.get(key)} there, {here.get(key)} here" for key in changed[:4])
        yield "run.folder", f"{folder} holds a run with other settings ({shown}); choose another folder or delete it"


def _flat(values: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """Dotted keys -> values that are no sections."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{inside}{name}.") if isinstance(value, Mapping) else {f"{inside}{name}": value}
    return flat


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
    state = weights * find_optimizer(optimizer).state_bytes(optimizer, _MATRIX) // (4 * math.prod(_MATRIX))
    return max(_FREE_BYTES, (weights + state) * (recipe.train.keep + 1) + 2 * weights)
