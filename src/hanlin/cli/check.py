"""Check a recipe: every problem in one list, before anything heavy starts.

hanlin check recipe.yaml
hanlin check recipe.yaml train.lr=1e-4 data.max_length=2048    with other settings
hanlin check recipe.yaml --show                                every setting that has an effect, defaults included
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hanlin.cli._recipe import add_recipe, add_start, say_remark, start_of
from hanlin.cli._say import say, tell

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe

HELP = "list every problem of a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_start(parser)
    parser.add_argument("--show", action="store_true", help="print the resolved recipe, defaults included")


def run(args: argparse.Namespace) -> int:
    from hanlin.checking import TRIED_ROWS, check_file, short_run_remark
    from hanlin.recipe.reading import dump_recipe

    recipe = check_file(args.recipe, args.changes, start=start_of(args))
    if args.show:
        print(dump_recipe(recipe))
        return 0
    say_remark(recipe)
    _tell_zeros(recipe)
    if remark := short_run_remark(recipe):
        say(remark)
    done = f"{args.recipe}: no problems (of each data file the first {TRIED_ROWS} rows were tried, a run tries all)"
    tell(done)
    return 0


def _tell_zeros(recipe: Recipe) -> None:
    """Warn of weights of the base that hold nothing, as training does when it loads them."""
    if recipe.model.base is None:
        return
    from hanlin.run.components import build_components
    from hanlin.run.weights import refuse_unsound

    if report := refuse_unsound(build_components(recipe), is_trained=bool(recipe.data.trained)):
        report.tell_zeros(recipe.model.base)
