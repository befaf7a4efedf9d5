"""Train as a recipe says; called again, go on where the run stopped.

The recipe is checked first. Ctrl-C or SIGTERM finishes the step, saves and ends. All accelerators of this machine are
used; under torchrun, srun or Kubernetes this is one of the processes they start (docs/launching.md).

hanlin train recipe.yaml                       by a recipe; `hanlin init rows.jsonl --base MODEL` writes a first one
hanlin train recipe.yaml train.lr=1e-5 run.folder=runs/slow    with other settings
hanlin train runs/mine                         go on with a run that was stopped
hanlin train recipe.yaml --nproc 2             on two accelerators of this machine
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hanlin.cli._launch import add_launch, on_all_ranks
from hanlin.cli._recipe import add_recipe, add_start, start_of

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe
    from hanlin.run.folder import Start

HELP = "train, or go on with a stopped run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_start(parser)
    add_launch(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.api.runs import first_start
    from hanlin.checking import check_file

    start = first_start(start_of(args))
    recipe = check_file(args.recipe, args.changes, "train", start=start, is_loaded_next=True)
    return on_all_ranks(args, recipe, lambda: _train(recipe, start), keeps_logs=True)


def _train(recipe: Recipe, start: Start) -> int:
    from hanlin.core.device import keep_freed_memory, pick_device
    from hanlin.run.assemble import assemble

    if pick_device(recipe.run.device).type == "cpu":
        keep_freed_memory()
    return assemble(recipe, start).train().exit_code
