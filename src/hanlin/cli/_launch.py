"""What the commands that may run on several processes have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from hanlin.cli._numbers import MAX_PROCESSES, real, whole
from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe


def add_launch(parser: argparse.ArgumentParser, *, is_alone: bool = False) -> None:
    """is_alone: without --nproc it is one process, whatever the machine and the recipe have."""
    default = "1" if is_alone else "one per accelerator, else as many as the recipe's section `parallel` needs"
    parser.set_defaults(is_alone=is_alone)
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--nproc",
        type=whole(1, MAX_PROCESSES),
        metavar="N",
        help=f"processes on this machine; default: {default}. torchrun, srun and Kubernetes say it themselves",
    )
    group.add_argument(
        "--timeout",
        type=real(1, 10**7),
        default=1800,
        metavar="SECONDS",
        help="a process that keeps the others waiting for longer is taken for lost (default: %(default).0f)",
    )
    group.add_argument(
        "--max-restarts",
        type=whole(0),
        default=0,
        metavar="N",
        help="start all processes anew after a failure; they go on from what is saved (default: %(default)s)",
    )


def on_all_ranks(args: argparse.Namespace, recipe: Recipe, work: Callable[[], int], *, keeps_logs: bool = False) -> int:
    """Do the work in this process, together with the other ranks if there are any; or start the ranks that do it.

    keeps_logs: what ranks other than 0 say stays in the run folder.
    Raises: ConfigError, RankError; what the work raises.
    """
    from hanlin.core.device import pick_device
    from hanlin.core.logging import start_log
    from hanlin.core.progress import idle
    from hanlin.core.ranks import read_ranks

    world = read_ranks().world
    to_start = num_to_start(args, recipe)
    if to_start > 1:
        from hanlin.parallel.launch import run_ranks_here
        from hanlin.run.folder import LOGS

        start_log()
        command = [sys.executable, "-m", "hanlin", *args.argv]
        logs = recipe.run.folder / LOGS if keeps_logs else None
        with idle():  # the ranks speak
            return run_ranks_here(command, to_start, max_restarts=args.max_restarts, logs=logs)
    if world == 1:
        return work()
    from hanlin.parallel.failure_report import report_failures

    with report_failures(pick_device(recipe.run.device), timeout_seconds=args.timeout):
        return work()


def num_to_start(args: argparse.Namespace, recipe: Recipe) -> int:
    """Processes to start here; 1: none besides this one.

    Raises: ConfigError.
    """
    from hanlin.core.device import num_devices
    from hanlin.core.ranks import is_launched, read_ranks

    nproc: int | None = args.nproc
    if is_launched():
        world = read_ranks().world
        if nproc not in (None, world):
            raise ConfigError(f"--nproc {nproc}: a launcher has already started {world} processes; remove --nproc")
        return 1
    if nproc is not None or args.is_alone:
        return nproc or 1
    layout = recipe.parallel
    per_copy = layout.tensor * layout.pipe
    copies = layout.data or max(layout.expert, num_devices(recipe.run.device) // per_copy)
    if copies * per_copy > MAX_PROCESSES:
        raise ConfigError(
            f"parallel: data x tensor x pipe are {copies * per_copy:,} processes, and one machine starts at most "
            f"{MAX_PROCESSES:,}; lower them, or start it on several machines: hanlin launch"
        )
    return copies * per_copy
