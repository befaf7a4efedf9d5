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
    from hanlin.assemble import assemble

    scores = assemble(recipe).evaluate()
    for task, metrics in scores.items():
        for name, value in metrics.items():
            print(f"{task:<12} {name:<24} {value:,.4f}")
    if args.json:
        args.json.write_text(json.dumps(scores, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 0
