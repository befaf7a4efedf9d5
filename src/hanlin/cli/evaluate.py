"""Score a model on the recipe's evaluation data.

The model is the best one of the recipe's run; before there is a run, or with --weights base, it is what the recipe
starts from. All accelerators of this machine are used, as in training (docs/launching.md); what is scored already is
not scored again, whatever the number of processes.

hanlin evaluate recipe.yaml                               the best weights of its run
hanlin evaluate runs/mine --weights last --json s.json    other weights; the scores as a file too
hanlin evaluate recipe.yaml --weights base evaluate.limit=100    what the run starts from, on 100 records
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._launch import add_launch, on_all_ranks
from hanlin.cli._recipe import add_recipe, add_weights
from hanlin.cli._targets import add_overwrite, new_target
from hanlin.core.files import replace_json

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe

HELP = "score a model on held-out data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_weights(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON too")
    add_overwrite(parser)
    add_launch(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.api.recipes import with_run_weights

    recipe = with_run_weights(args.recipe, args.changes, args.weights, "evaluate")
    if args.json:
        new_target(args.json, overwrite=args.overwrite)
    return on_all_ranks(args, recipe, lambda: _score(recipe, args.json), keeps_logs=True)


def _score(recipe: Recipe, target: Path | None) -> int:
    from hanlin.core.ranks import read_ranks
    from hanlin.core.terminal import screen
    from hanlin.evaluation.run import metrics_table
    from hanlin.run.assemble import assemble

    scores = assemble(recipe).evaluate()
    if read_ranks().is_main:
        if target:
            replace_json(target, scores)
        screen().print(metrics_table(scores))
    return 0
