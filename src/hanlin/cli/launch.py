"""Run a command on several machines: one command per machine, printed, or executed by ssh with --run.

The hostfile is DeepSpeed's: lines of `host slots=8`. The first machine is where all meet. Python, the project and the
current folder must be at the same place on all machines. On one machine, `hanlin train` alone does it.

hanlin launch --hostfile hosts train recipe.yaml          one command for each machine, printed
hanlin launch --hostfile hosts --run train recipe.yaml    the same, executed by ssh
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from hanlin.cli._numbers import whole
from hanlin.core.errors import ConfigError

HELP = "train, evaluate or generate on several machines named in a hostfile"

COMMANDS = ("train", "evaluate", "generate")
"""Those that run on several processes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hostfile", type=Path, required=True, help="lines of `host slots=PROCESSES`")
    parser.add_argument("--run", action="store_true", dest="is_run", help="run the commands by ssh, do not print them")
    parser.add_argument("--include", metavar="HOST@HOST", help="only these hosts of the file")
    parser.add_argument("--exclude", metavar="HOST@HOST", help="all hosts of the file but these")
    parser.add_argument("--master", metavar="ADDRESS", help="where all meet; default: the first host")
    parser.add_argument("--port", type=whole(1, 65_535), default=29500, help="a free port there (default: %(default)s)")
    parser.add_argument(
        "--max-restarts", type=whole(0), default=0, metavar="N", help="as of torchrun (default: %(default)s)"
    )
    parser.add_argument("what", nargs=argparse.REMAINDER, metavar="train RECIPE ...", help="the command to run")


def run(args: argparse.Namespace) -> int:
    from hanlin.core.logging import start_log
    from hanlin.core.progress import idle
    from hanlin.parallel.launch import Rendezvous, node_commands, run_nodes
    from hanlin.recipe.deepspeed import read_hostfile

    if args.what[:1] not in [[name] for name in COMMANDS] or len(args.what) < 2:
        raise ConfigError(f"expected {', '.join(COMMANDS)} and a recipe, found {args.what}")
    if "--restart" in args.what and args.max_restarts:
        raise ConfigError("--restart with --max-restarts would throw the checkpoints away at every failure; drop one")
    hosts = _chosen(read_hostfile(args.hostfile), args.include, args.exclude)
    address = args.master or next(iter(hosts)).rpartition("@")[2]
    commands = node_commands(hosts, args.what, Rendezvous(address, args.port, args.max_restarts))
    if args.is_run:
        start_log()
        with idle():  # the nodes speak
            return run_nodes(commands)
    for host, line in commands.items():
        print(f"# {host}\n{line}")
    return 0


def _chosen(hosts: Mapping[str, int], include: str | None, exclude: str | None) -> dict[str, int]:
    named = [host for words in (include, exclude) if words for host in words.split("@")]
    if unknown := sorted(set(named) - set(hosts)):
        raise ConfigError(f"--include, --exclude: {', '.join(unknown)} not in the hostfile ({', '.join(hosts)})")
    kept = include.split("@") if include else list(hosts)
    dropped = exclude.split("@") if exclude else []
    chosen = {host: slots for host, slots in hosts.items() if host in kept and host not in dropped}
    if not chosen:
        raise ConfigError("--exclude: leaves no host")
    return chosen
