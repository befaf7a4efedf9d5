"""Score a model on the recipe's evaluation data.

The model is the best one of the recipe's run; before there is a run, or with --weights base, it is what the recipe
starts from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hanlin.cli._recipe import add_recipe, add_weights, with_run_weights

HELP = "score a model on held-out data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_weights(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON too")


def run(args: argparse.Namespace) -> int:
    recipe = with_run_weights(args.recipe, args.changes, args.weights, "evaluate")
    from rich.console import Console

    from hanlin.assemble import assemble
    from hanlin.evaluate.run import metrics_table

    scores = assemble(recipe).evaluate()
    Console().print(metrics_table(scores))
    if args.json:
        args.json.write_text(json.dumps(scores, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 0
