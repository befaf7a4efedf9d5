"""An adapter opened from whatever layout it lies in: ours, or one that a tuning method names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat
from hanlin.adapters.folder import FOLDER
from hanlin.adapters.lora_parts import OtherShapeError
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.manifest import check_complete
from hanlin.formats.format import FamilyFacts
from hanlin.formats.megatron import lies_in_ranks
from hanlin.formats.translate import shapes_of
from hanlin.recipe.tuning import TUNING_METHODS, TuningMethod

if TYPE_CHECKING:
    from hanlin.models.family import Family

_RECIPE, _STATE, _RESULTS = "config.yaml", "state.json", ("best", "last")
OURS = "adapter"
"""The word for our adapter folder in `convert --to`."""


def open_adapter(path: Path, family: FamilyFacts, config: Any = None) -> Adapter:
    """The adapter at a path; also what lies among the tensors of a whole model, and the best one of a run folder.

    config: that of its base, by which foreign layouts cut fused tensors; None: the family's default.
    Raises: CheckpointError.
    """
    path, known = of_run(Path(path)), _formats()
    for form in known:
        if (adapter := form.open(path, family, config)) is not None:
            return adapter
    raise CheckpointError(f"{path}: holds no adapter; known are {', '.join(form.title for form in known)}")


def of_run(path: Path) -> Path:
    """What a run has trained best, where a path is its folder; any other path as it is.

    Raises: CheckpointError for a run that has not trained an adapter, and for a checkpoint to go on from.
    """
    if (path / _STATE).is_file():
        run = path.parent.parent
        raise CheckpointError(
            f"{path}: a checkpoint from which its run goes on (weights, optimizer, place in the data); what it has "
            f"trained is {run / _RESULTS[0]} or {run / _RESULTS[1]}, which `hanlin train {run}` writes"
        )
    if not (path / _RECIPE).is_file():
        return path
    there = [path / name for name in _RESULTS if (path / name).is_dir()]
    if not there:
        raise CheckpointError(f"{path}: a run folder without best/ and last/; train first: hanlin train {path}")
    if not FOLDER.holds(there[0]):
        raise CheckpointError(
            f"{path}: this run has trained a whole model, which is no adapter; name {there[0]} as base"
        )
    return there[0]


def weights_of_run(path: Path) -> Path:
    """What a run has trained best, an adapter or a whole model, where a path is its folder; any other path as it is."""
    is_run = (path / _RECIPE).is_file()
    return next((path / name for name in _RESULTS if is_run and (path / name).is_dir()), path)


def find_format(path: Path) -> AdapterFormat | None:
    """The layout of a path that holds an adapter and no whole model; None for any other path."""
    path = Path(path)
    for folder in (path, *(path / name for name in _RESULTS)):
        check_complete(folder)
    if (path / _RECIPE).is_file():
        return FOLDER if any(FOLDER.holds(path / name) for name in _RESULTS) else None
    if not path.exists() or lies_in_ranks(path):
        return None
    return next((form for form in _formats() if form.holds(path)), None)


def is_adapter(path: Path) -> bool:
    """Whether a path holds an adapter and no whole model."""
    return find_format(path) is not None


def find_families(path: Path, form: AdapterFormat, families: Iterable[Family]) -> list[Family]:
    """The families that an adapter can be of: that of its layout, else those that have all modules that it changes."""
    families = list(families)
    if form.family is not None:
        return [family for family in families if family.name == form.family]
    return [family for family in families if _changes_modules_of(path, form, family)]


def _changes_modules_of(path: Path, form: AdapterFormat, family: Family) -> bool:
    try:
        adapter = form.open(path, family, None)
    except OtherShapeError:
        return True  # its base, which is not known here, says how a fused linear is cut
    except CheckpointError:
        return False
    smallest = min(family.sizes.values(), key=lambda config: getattr(config, "num_layers", 0), default=family.config())
    known = {_numberless(name) for name in shapes_of(family, smallest)}
    names = [] if adapter is None else [_numberless(name) for name in adapter.tensors]
    return bool(names) and all(name in known or f"{name.rpartition('.')[0]}.weight" in known for name in names)


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def format_to_write(settings: TuningMethod, word: str) -> AdapterFormat:
    """The layout of a method's adapters that `convert --to` calls so.

    Raises: ConfigError.
    """
    known = {OURS: FOLDER, **settings.formats()}
    if word not in known:
        raise ConfigError(
            f"--to {word}: the adapter of a {settings.method} is written as {', '.join(known)}; "
            "worked into its base (hanlin convert BASE OUT --merge ADAPTER --to ...) in any layout of whole models"
        )
    return known[word]


def is_adapter_layout(word: str) -> bool:
    """Whether `convert --to` calls a layout of adapters so, of any method here."""
    return word == OURS or any(word in TUNING_METHODS.load(name).formats() for name in TUNING_METHODS.names)


def _formats() -> list[AdapterFormat]:
    """Ours first; each once, though `--to` may have two words for it."""
    of_methods = [form for name in TUNING_METHODS.names for form in TUNING_METHODS.load(name).formats().values()]
    return list(dict.fromkeys([FOLDER, *of_methods]))
