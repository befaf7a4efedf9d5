"""What the commands that take a recipe have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._trust import add_trust
from hanlin.core.errors import ConfigError, HanlinError

if TYPE_CHECKING:
    from hanlin.check import Purpose
    from hanlin.recipe.settings import Recipe


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe (YAML), or a run folder, which stands for its recipe")
    parser.add_argument("changes", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change: train.lr=1e-4")
    add_trust(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        metavar="best|last|base|PATH",
        help="of the recipe's run: best (default; where there is none, last) or last; "
        "base: what the run started from (fresh weights where there is none); or any weights: "
        "whether it is an adapter or a whole model is told from its files",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model of a recipe, of a run, or of files alone; `recipe_of_model` reads it."""
    parser.add_argument(
        "words", nargs="*", metavar="RECIPE KEY=VALUE", help="a recipe or a run folder, and settings to change"
    )
    add_weights(parser)
    add_trust(parser)
    model = parser.add_argument_group("a model without a recipe")
    model.add_argument("--base", type=Path, help="a base folder, or an original checkpoint")
    model.add_argument("--adapter", type=Path, help="what a tuning method trained, on top of it")
    model.add_argument("--vocab", type=Path, help="its vocabulary; default: the base folder's own")
    model.add_argument("--family", help="its family; default: told from the files")
    add_tuning(model)


def add_tuning(parser: argparse._ActionsContainer) -> None:
    """A tuning method of the user's own, which an adapter may name only then; `run_tuning_file` reads it."""
    parser.add_argument(
        "--tuning", type=Path, metavar="FILE.py", help="a tuning method of your own that the adapter names; it is run"
    )


def run_tuning_file(args: argparse.Namespace) -> None:
    """Raises: ConfigError."""
    if args.tuning is not None:
        from hanlin.core.extensions import import_file

        import_file(args.tuning)


def with_run_weights(recipe: Path, changes: Iterable[str], weights: str | None, purpose: Purpose) -> Recipe:
    """The checked recipe whose model is what its run has trained; without a run, what the run would start from.

    Raises: ConfigError.
    """
    from hanlin.check import check_file
    from hanlin.recipe.reading import read_recipe

    changes = list(changes)
    read = read_recipe(recipe, changes)
    draft = read.recipe
    if draft is not None and not read.problems and weights != "base":  # else check_file lists all problems
        folder = _weights_folder(draft, weights)
        if folder.exists():
            changes += _pointing_at(draft, folder)
        elif weights not in (None, "best", "last"):
            raise ConfigError(f"--weights: there is no {folder}; expected best, last, base or a path")
        elif weights is not None:
            raise ConfigError(f"there is no {folder}; train first: hanlin train {recipe}")
        elif draft.model.base is None:
            raise ConfigError(f"model.base is empty and there is no {folder}; train first: hanlin train {recipe}")
    return check_file(recipe, changes, purpose)


def _weights_folder(recipe: Recipe, weights: str | None) -> Path:
    best, last = recipe.run.folder / "best", recipe.run.folder / "last"
    if weights is None:
        return best if best.is_dir() else last
    return {"best": best, "last": last}.get(weights) or Path(weights)


def _pointing_at(recipe: Recipe, weights: Path) -> list[str]:
    """The changes that put weights on top of the recipe's base, or in its place."""
    from hanlin.adapters.folder import ADAPTER_FOLDER
    from hanlin.adapters.opening import is_adapter

    shown = json.dumps(str(weights), ensure_ascii=False)
    if is_adapter(weights):
        return [f"model.adapter={shown}"]
    if is_adapter(weights / ADAPTER_FOLDER):
        inner = json.dumps(str(weights / ADAPTER_FOLDER), ensure_ascii=False)
        return [f"model.base={shown}", f"model.adapter={inner}"]
    if _holds_adapter_too(recipe, weights):
        return [f"model.base={shown}", f"model.adapter={shown}"]
    return [f"model.base={shown}", *(["model.adapter=null"] if recipe.model.adapter else [])]


def _holds_adapter_too(recipe: Recipe, weights: Path) -> bool:
    """Whether what a tuning method has trained lies among the tensors of a whole model."""
    from hanlin.formats.source import open_source
    from hanlin.models.family import load_family

    try:
        return bool(open_source(weights, load_family(recipe.model.family)).tuned_names)
    except HanlinError:
        return False  # what is wrong with it is said when it is checked as a base


def recipe_of_model(args: argparse.Namespace) -> Recipe:
    """The checked recipe of a command with `add_model`.

    Raises: ConfigError.
    """
    run_tuning_file(args)
    changes = [word for word in args.words if "=" in word]
    recipes = [word for word in args.words if "=" not in word]
    if len(recipes) + (args.base is not None) != 1:
        raise ConfigError("name one recipe, one run folder, or a model with --base")
    if recipes:
        return with_run_weights(Path(recipes[0]), changes, args.weights, "generate")
    return _recipe_of_base(args, changes)


def say_remark(recipe: Recipe) -> None:
    """Write to stderr what was told of a checked recipe's base from clues in its folder, if anything was."""
    from hanlin.core.ranks import read_ranks
    from hanlin.formats.source import open_source
    from hanlin.models.family import load_family

    base = recipe.model.base
    if base is None or not read_ranks().is_main:
        return
    if remark := open_source(base, load_family(recipe.model.family)).remark:
        print(f"{base}: {remark}", file=sys.stderr)


def _recipe_of_base(args: argparse.Namespace, changes: Sequence[str]) -> Recipe:
    from hanlin.check import check
    from hanlin.cli._weights import find_family
    from hanlin.recipe.reading import COMMAND_LINE, listing, make_recipe

    model = {"family": args.family or find_family(args.base).name, "base": str(args.base)}
    model |= {name: str(path) for name in ("adapter", "vocab") if (path := getattr(args, name)) is not None}
    recipe = make_recipe({"model": model, "run": {"folder": "."}}, changes)
    if problems := check(recipe, purpose="generate"):
        raise ConfigError(listing(problems, COMMAND_LINE))
    return recipe
