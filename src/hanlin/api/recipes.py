"""Which recipe is meant: that of a file, a dict, a run with what it has trained, or a model without any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError, HanlinError
from hanlin.recipe.reading import COMMAND_LINE, Change, Overrides, RecipeSource, listing, name_of, read_changes

if TYPE_CHECKING:
    from hanlin.checking import Purpose
    from hanlin.formats.source import Source
    from hanlin.models.family import Family
    from hanlin.recipe.settings import Recipe

__all__ = ["recipe_of_base", "remark_on_base", "with_run_weights"]


def with_run_weights(source: RecipeSource, overrides: Overrides, weights: str | None, purpose: Purpose) -> Recipe:
    """The checked recipe whose model is what its run has trained; without a run, what the run would start from.

    weights: best (default; where there is none, last) or last of the run; base: what it starts from; or a path.
    Raises: ConfigError.
    """
    from hanlin.checking import check_file
    from hanlin.recipe.reading import read_recipe

    changes = read_changes(overrides)
    read = read_recipe(source, changes)
    draft = read.recipe
    if draft is not None and not read.problems and weights != "base":  # else check_file lists all problems
        folder, name = _weights_folder(draft, weights), name_of(source)
        if folder.exists():
            changes += _pointing_at(draft, folder)
        elif weights not in (None, "best", "last"):
            raise ConfigError(f"weights: there is no {folder}; expected best, last, base or a path")
        elif weights == "best" and (folder.parent / "last").is_dir():
            raise ConfigError(
                f"there is no {folder}: the run was not evaluated while it trained (data.eval and train.eval_every), "
                "so that none of its weights are the best; use --weights last"
            )
        elif weights is not None:
            raise ConfigError(f"there is no {folder}; train first: hanlin train {name}")
        elif draft.model.base is None:
            raise ConfigError(f"model.base is empty and there is no {folder}; train first: hanlin train {name}")
    return check_file(source, changes, purpose, is_loaded_next=True)


def _weights_folder(recipe: Recipe, weights: str | None) -> Path:
    from hanlin.core.hub import locate

    best, last = recipe.run.folder / "best", recipe.run.folder / "last"
    if weights is None:
        return best if best.is_dir() else last
    return {"best": best, "last": last}.get(weights) or locate(Path(weights))


def _pointing_at(recipe: Recipe, weights: Path) -> Iterator[Change]:
    """The changes that put weights on top of the recipe's base, or in its place."""
    from hanlin.adapters.folder import ADAPTER_FOLDER
    from hanlin.adapters.opening import is_adapter

    if is_adapter(weights):
        yield Change("model.adapter", str(weights), COMMAND_LINE)
        return
    yield Change("model.base", str(weights), COMMAND_LINE)
    if is_adapter(weights / ADAPTER_FOLDER):
        yield Change("model.adapter", str(weights / ADAPTER_FOLDER), COMMAND_LINE)
    elif _holds_adapter_too(recipe, weights):
        yield Change("model.adapter", str(weights), COMMAND_LINE)
    elif recipe.model.adapter:
        yield Change("model.adapter", None, COMMAND_LINE)


def _holds_adapter_too(recipe: Recipe, weights: Path) -> bool:
    """Whether what a tuning method has trained lies among the tensors of a whole model."""
    from hanlin.formats.source import open_source
    from hanlin.models.family import load_family

    try:
        return bool(open_source(weights, load_family(recipe.model.family)).tuned_names)
    except HanlinError:
        return False  # what is wrong with it is said when it is checked as a base


def recipe_of_base(base: Path, overrides: Overrides = (), *, family: str | None = None, **model: Path | None) -> Recipe:
    """The checked recipe of a model as it lies on disk; family: None: told from the files; model: adapter, vocab.

    Raises: ConfigError, CheckpointError.
    """
    from hanlin.api.weights import find_family, located
    from hanlin.checking import check
    from hanlin.core.hub import locate
    from hanlin.recipe.reading import make_recipe

    base = locate(base) if family else located(base)
    values: dict[str, Any] = {"family": family or find_family(base).name, "base": str(base)}
    values |= {name: str(path) for name, path in model.items() if path is not None}
    recipe = make_recipe({"model": values, "run": {"folder": "."}}, overrides)
    if problems := check(recipe, purpose="generate", is_loaded_next=True):
        raise ConfigError(listing(problems, COMMAND_LINE))
    return recipe


def remark_on_base(recipe: Recipe) -> str:
    """What was told of a checked recipe's base from clues in its folder, which folder of a cache a name stands for, and
    whether an adapter's files call another base theirs; empty: nothing was.
    """
    from hanlin.core.hub import name_of_folder
    from hanlin.formats.source import open_source
    from hanlin.models.family import load_family

    model, family = recipe.model, load_family(recipe.model.family)
    source = None if model.base is None else open_source(model.base, family)
    found = [f"{model.base}: {source.remark}"] if source is not None and source.remark else []
    given = [path for path in (model.base, model.adapter, model.vocab) if path is not None]
    found = [f"{name}: it lies in {path}" for path in given if (name := name_of_folder(path))] + found
    return "\n".join([*found, *_other_base(recipe, family, source)])


def _other_base(recipe: Recipe, family: Family, source: Source | None) -> Iterator[str]:
    """Whether the adapter says that it was trained on a base that is called otherwise than the recipe's."""
    from hanlin.core.hub import name_of_folder
    from hanlin.run.components import find_adapter

    adapter, base = find_adapter(recipe, family, source), recipe.model.base
    if adapter is None or adapter.base is None or base is None:
        return
    here = Path(name_of_folder(base) or base.resolve())
    if Path(adapter.base).name != here.name:
        yield f"{adapter.path}: says that it was trained on {adapter.base}, the base is {base}; see that it is the same"
