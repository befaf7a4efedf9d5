"""Train as a recipe says; called again, go on where the run stopped.

The recipe is checked first. Ctrl-C or SIGTERM finishes the step, saves and ends.
"""

from __future__ import annotations

import argparse

from hanlin.cli._recipe import add_recipe

HELP = "train, or go on with a stopped run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--restart", action="store_true", help="start anew although the run folder holds checkpoints")


def run(args: argparse.Namespace) -> int:
    from hanlin.check import check_file

    recipe = check_file(args.recipe, args.changes, "train")
    from hanlin.assemble import assemble

    return assemble(recipe, resume=not args.restart).train()
