"""The run folder: what a former run has left in it, and how the next start of the same command goes about that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import yaml

from hanlin.checkpoint.saved import CHECKPOINTS, checkpoint_folders, refuse_lost
from hanlin.checkpoint.state import MOVABLE, newest_settings
from hanlin.core.errors import ConfigError, shorten
from hanlin.core.files import has_file, replaced_file, sync
from hanlin.core.locks import LOCK_FILE, held
from hanlin.recipe.reading import dump_recipe, load_recipe, make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.recipe.unused_settings import unused_settings
from hanlin.run.precision import saying
from hanlin.training.objective import REFERENCE
from hanlin.training.run_curves import STARTS

__all__ = ["FORMER", "LOGS", "Start", "open_run_folder", "refuse_other_run", "train_settings", "with_run_precision"]

Start = Literal["resume", "change", "restart"]
"""How a run begins in a folder that holds one: it goes on; it goes on with other settings of `train`; it begins anew,
and the former one is set aside.
"""

FORMER = "former"
"""In the run folder: former runs, each a run folder by itself, by number."""

LOGS = "logs"
"""In the run folder: what each rank but the first says, start after start; `--restart` leaves it there, since the ranks
have it open already.
"""

_CONFIG = "config.yaml"
_PRECISION = "train.precision"
_OPTIMIZER = "train.optimizer."
_OPTIMIZER_NAME = f"{_OPTIMIZER}name"
_TRAINED = (
    *("log.txt", "metrics.jsonl", "metrics.damaged.jsonl", "samples.jsonl", "samples.damaged.jsonl"),
    *("parameters.jsonl", "parameters.damaged.jsonl", STARTS, REFERENCE, CHECKPOINTS, f"saved.{CHECKPOINTS}.json"),
    *("best", "last"),
    *("tensorboard", "wandb", "swanlab"),
)
_EVALUATION = "evaluation"
_WRITTEN = (_CONFIG, *_TRAINED, _EVALUATION, "report.html", "report.png")
"""All that a run writes; whatever else lies in its folder (a recipe, data) is the user's and stays."""

# What may change between two starts of the same run without a word to ask for it; of paths, what lies there may not.
_FREE = re.compile(
    rf"{'|'.join(map(re.escape, MOVABLE))}|(generate|evaluate)\..*|run\.(?!seed).*|data\.(cache|eval)"
    r"|parallel\..*|train\.(steps|epochs|micro_batch_size|eval_every|inspect_every|samples|patience|save_every|save_in_background|save_dtype|keep|max_skipped)"
)
# What changes the numbers, but leaves a checkpoint's weights and place in the data their meaning.
# Not that of the dtype in which the base was read, nor of an objective that reads other rows.
_ON_REQUEST = re.compile(r"train\.(?!batch_size|weight_dtype|objective\.name).*")


def refuse_other_run(recipe: Recipe, start: Start) -> None:
    """See that a run can begin in its folder as it is asked to.

    Raises: ConfigError when a run with other settings is there, CheckpointError when its checkpoints are gone.
    """
    folder = recipe.run.folder
    if start == "restart" or _is_half_set_aside(folder):
        return
    _refuse_odd(folder)
    refuse_lost(folder / CHECKPOINTS)
    if not checkpoint_folders(folder / CHECKPOINTS):
        _refuse_foreign(folder)
        return
    refused = {
        key: values
        for key, values in _changes(recipe).items()
        if not _FREE.fullmatch(key) and not (start == "change" and _may_change(recipe, key))
    }
    if refused:
        ways = ["set them back", "choose another folder", f"begin anew (--restart; what is there goes to {FORMER}/)"]
        if all(_may_change(recipe, key) for key in refused):
            ways.insert(1, "go on with the new ones (--change)")
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(shorten(_shown(refused), 4))}); "
            f"{', '.join(ways[:-1])} or {ways[-1]}"
        )


def _may_change(recipe: Recipe, key: str) -> bool:
    """Whether a run can go on with another value. A frozen base is kept in the run's precision: it would be another."""
    return bool(_ON_REQUEST.fullmatch(key)) and (key != _PRECISION or recipe.tuning.trains_base)


def open_run_folder(recipe: Recipe, start: Start) -> list[str]:
    """Make the folder ready for the run, and write the recipe into it; whoever calls this holds the folder.

    Returns the settings that are others than at the last start, as old -> new.
    Raises: as `refuse_other_run`.
    """
    folder = recipe.run.folder
    refuse_other_run(recipe, start)
    if start == "restart" or _is_half_set_aside(folder):
        evaluation = folder / _EVALUATION
        with held(evaluation) if evaluation.is_dir() else nullcontext():  # nobody may be writing there
            _set_aside(folder)
    changed = _changes(recipe) if checkpoint_folders(folder / CHECKPOINTS) else {}
    with replaced_file(folder / _CONFIG) as stream:
        stream.write(dump_recipe(recipe).encode())
    return _shown(changed)


def with_run_precision(recipe: Recipe, start: Start = "resume") -> Recipe:
    """The recipe with what `train.precision: auto` is for the run that its folder holds: what it began with.

    Raises: ConfigError when the run's own recipe cannot be read.
    """
    folder = recipe.run.folder
    if recipe.train.precision != "auto" or start == "restart" or _is_half_set_aside(folder):
        return recipe
    if not checkpoint_folders(folder / CHECKPOINTS):
        return recipe
    former = newest_settings(folder / CHECKPOINTS).get(_PRECISION)
    if former is None and (folder / _CONFIG).is_file():  # a checkpoint from before settings were kept
        former = load_recipe(folder).train.precision
    return saying(recipe, former or "auto")


def train_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of `train` that change the numbers, by dotted key; not those without an effect."""
    settings, idle = _flat({"train": recipe.train.model_dump(mode="json")}), unused_settings(recipe)
    return {key: value for key, value in settings.items() if not _FREE.fullmatch(key) and key not in idle}


def _refuse_odd(folder: Path) -> None:
    """See that nothing stands in the way of the files of a run: a pipe would be waited for.

    Raises: ConfigError.
    """
    pointers = [f"{CHECKPOINTS}/{name}" for name in ("latest", "best")]
    for name in [*(name for name in _WRITTEN if "." in name), *pointers]:
        has_file(folder / name, ConfigError)
    if (folder / LOGS).exists() and not (folder / LOGS).is_dir():
        raise ConfigError(f"{folder / LOGS} is no folder, and what ranks say goes there; remove it")


def _refuse_foreign(folder: Path) -> None:
    """See that nothing would be written over that no run has left there.

    Raises: ConfigError.
    """
    found = [name for name in _TRAINED if (folder / name).exists()]
    if found and not (folder / _CONFIG).is_file():
        raise ConfigError(
            f"{folder}: holds {found[0]}, and no {_CONFIG}, which a run begins with, so it is something else; choose "
            f"another run.folder, or begin with --restart, which moves it to {FORMER}/ first"
        )


def _is_half_set_aside(folder: Path) -> bool:
    """Whether a restart was killed while it did so; it is brought to its end before anything else."""
    return any((folder / FORMER).glob("*.part"))


def _set_aside(folder: Path) -> None:
    """Move what a run has written to `former/NUMBER`; one that a kill cut short is brought to its end."""
    found = [folder / name for name in _WRITTEN if (folder / name).exists()]
    former = folder / FORMER
    begun = next(former.glob("*.part"), None)
    if begun is None:
        if not found:
            return
        numbers = [int(path.name) for path in former.glob("[0-9]*") if path.name.isdecimal()]
        begun = former / f"{max(numbers, default=0) + 1}.part"
        begun.mkdir(parents=True)
    for path in found:
        path.rename(begun / path.name)
    (begun / _EVALUATION / LOCK_FILE).unlink(missing_ok=True)
    sync(begun)
    begun.rename(begun.with_suffix(""))
    sync(former)
    sync(folder)


def _changes(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that are not those with which the folder's run was started last: key -> old, new.

    Raises: ConfigError when these cannot be read.
    """
    folder = recipe.run.folder
    if not (folder / _CONFIG).is_file():
        return {}
    try:
        # Through the settings, so that one that came into being after that run has its default on both sides.
        former = load_recipe(folder)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} holds a run whose {_CONFIG} cannot be read ({error}); restore it, choose another folder, or "
            "begin anew (--restart)"
        ) from None
    recipe = with_run_precision(recipe)
    there, here = (
        _flat(one.model_dump(mode="json")) for one in (former, make_recipe(yaml.safe_load(dump_recipe(recipe))))
    )
    # What the checkpoint was written with counts: a start with other settings may have ended before its first one.
    counts, was = train_settings(recipe), newest_settings(folder / CHECKPOINTS)
    if was.get(_OPTIMIZER_NAME, there[_OPTIMIZER_NAME]) != there[_OPTIMIZER_NAME]:
        there = {key: value for key, value in there.items() if not key.startswith(_OPTIMIZER)}
    there |= {key: was[key] for key in counts.keys() & was.keys()}
    if here[_OPTIMIZER_NAME] != there[_OPTIMIZER_NAME]:  # what else is set of them has nothing in common
        there, here = ({key: one[key] for key in one if not _is_of_optimizer(key)} for one in (there, here))
    keys = sorted(here.keys() | there.keys())
    return {key: (there.get(key), here.get(key)) for key in keys if here.get(key) != there.get(key)}


def _is_of_optimizer(key: str) -> bool:
    """Whether it is a setting of one optimizer, which others need not have."""
    return key.startswith(_OPTIMIZER) and key != _OPTIMIZER_NAME


def _shown(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{key}: {old} -> {new}" for key, (old, new) in changes.items()]


def _flat(values: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    """Dotted keys -> values that are no sections."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{inside}{name}.") if isinstance(value, Mapping) else {f"{inside}{name}": value}
    return flat
