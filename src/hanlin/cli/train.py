"""Train as a recipe says; called again, go on where the run stopped.

The recipe is checked first. Ctrl-C or SIGTERM finishes the step, saves and ends. All accelerators of this machine are
used; under torchrun, srun or Kubernetes this is one of the processes they start (docs/launching.md).
"""

from __future__ import annotations

import argparse

from hanlin.cli._launch import add_launch, on_all_ranks
from hanlin.cli._recipe import add_recipe

HELP = "train, or go on with a stopped run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--restart", action="store_true", help="start anew although the run folder holds checkpoints")
    add_launch(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.check import check_file
    from hanlin.core.ranks import num_restarts

    recipe = check_file(args.recipe, args.changes, "train")
    from hanlin.run.assemble import assemble

    resume = not args.restart or num_restarts() > 0
    return on_all_ranks(args, recipe, lambda: assemble(recipe, resume=resume).train())
