"""What the commands that take a recipe have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._say import say
from hanlin.cli._trust import add_trust
from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe
    from hanlin.run.folder import Start


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe (YAML), or a run folder, which stands for its recipe")
    parser.add_argument("changes", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change: train.lr=1e-4")
    add_trust(parser)


def add_start(parser: argparse.ArgumentParser) -> None:
    """How training begins where the run folder holds a run; `start_of` reads it."""
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--restart", action="store_true", help="begin anew; the run that is there is kept in RUN/former/NUMBER"
    )
    begin.add_argument(
        "--change", action="store_true", help="go on with the run that is there although settings of train are others"
    )


def start_of(args: argparse.Namespace) -> Start:
    return "change" if args.change else "restart" if args.restart else "resume"


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        metavar="best|last|base|PATH",
        help="of the recipe's run: best (default; where there is none, last) or last; "
        "base: what the run started from (fresh weights where there is none); or any weights: "
        "whether it is an adapter or a whole model is told from its files",
    )


def add_model(parser: argparse.ArgumentParser, *, several_adapters: bool = False) -> None:
    """The model of a recipe, of a run, or of files alone; `recipe_of_model` reads it, once there is one adapter."""
    parser.add_argument(
        "words", nargs="*", metavar="RECIPE KEY=VALUE", help="a recipe or a run folder, and settings to change"
    )
    add_weights(parser)
    add_trust(parser)
    model = parser.add_argument_group("a model without a recipe")
    model.add_argument("--base", type=Path, help="a base folder, or an original checkpoint")
    if several_adapters:
        text = "what a tuning method trained, on top of it; with names: several beside each other and beside the base"
        model.add_argument("--adapter", action="append", default=[], metavar="[NAME=]PATH", help=text)
    else:
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


def recipe_of_model(args: argparse.Namespace) -> Recipe:
    """The checked recipe of a command with `add_model`.

    Raises: ConfigError.
    """
    run_tuning_file(args)
    changes = [word for word in args.words if "=" in word]
    recipes = [word for word in args.words if "=" not in word]
    if len(recipes) + (args.base is not None) != 1:
        raise ConfigError("name one recipe, one run folder, or a model with --base")
    from hanlin.api.recipes import recipe_of_base, with_run_weights

    _refuse_idle(args, bool(recipes))
    if recipes:
        return with_run_weights(recipes[0], changes, args.weights, "generate")
    return recipe_of_base(args.base, changes, family=args.family, adapter=args.adapter, vocab=args.vocab)


def _refuse_idle(args: argparse.Namespace, has_recipe: bool) -> None:
    """Raises: ConfigError for an option that would have no effect."""
    if not has_recipe and args.weights is not None:
        raise ConfigError("--weights: says which ones of a run are meant, and here is a --base; leave one of them out")
    for name in ("adapter", "vocab", "family"):
        if has_recipe and getattr(args, name):
            raise ConfigError(
                f"--{name}: goes with --base; of a recipe or a run it is the setting model.{name}, and --weights names "
                "other weights of a run"
            )


def say_remark(recipe: Recipe) -> None:
    """Write to stderr what was told of a checked recipe's base from clues in its folder, if anything was."""
    from hanlin.api.recipes import remark_on_base
    from hanlin.core.ranks import read_ranks

    if read_ranks().is_main and (remark := remark_on_base(recipe)):
        say(remark)
