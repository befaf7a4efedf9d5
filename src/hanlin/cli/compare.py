"""Compare recipes and methods over seeds: a grid of runs, one table, one page.

Every cell is a run folder of its own; called again it goes on where it was, and runs again what failed. All cells are
checked before the first one starts (docs/comparing.md).

hanlin compare grid.yaml                       runs what is not done; comparison.html, .md, .csv and .json in its folder
hanlin compare grid.yaml --dry-run             its cells, checked, and what is known of them
hanlin compare grid.yaml --only 'bee/*'        some of them: several machines or jobs share a grid
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._numbers import MAX_PROCESSES, whole
from hanlin.cli._say import say, tell
from hanlin.cli._trust import add_trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hanlin.api.comparison.results import CellResult

HELP = "a grid of runs: recipes x methods x seeds, and one table of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="recipes, methods and seeds (docs/comparing.md)")
    parser.add_argument("--dry-run", action="store_true", help="check and show the cells, run nothing")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="cells RECIPE/METHOD/seedN with such a name: 'bee/*'"
    )
    parser.add_argument("--nproc", type=whole(1, MAX_PROCESSES), metavar="N", help="processes of each run")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    from hanlin.api.comparing import compare, planned_cells, write_results
    from hanlin.api.comparison.grid import read_grid
    from hanlin.api.comparison.running import Interrupted, found_results
    from hanlin.parallel.launch import EXIT_SAVED

    grid = read_grid(args.grid)
    if args.dry_run:
        _show_cells(found_results(planned_cells(grid, args.only)))
        return 0
    options = [*(["--nproc", str(args.nproc)] if args.nproc else []), *(["--trust-code"] if args.trust_code else [])]
    try:
        results = compare(args.grid, say, only=args.only, options=options)
    except Interrupted:
        say(f"interrupted; hanlin compare {args.grid} goes on")
        return EXIT_SAVED
    _show_table(results)
    for path in write_results(grid, args.grid.stem):
        print(path)
    return 1 if any(one.state == "failed" for one in results) else 0


def _show_cells(results: Sequence[CellResult]) -> None:
    for one in results:
        tell(f"{one.name}: {one.state}{f' ({one.reason})' if one.reason else ''}")
    tell(f"{len(results)} cells, {sum(one.state == 'done' for one in results)} done")


def _show_table(results: Sequence[CellResult]) -> None:
    from rich.table import Table
    from rich.text import Text

    from hanlin.api.comparison.page import HEAD, table_rows
    from hanlin.core.terminal import screen

    table = Table()
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in table_rows(results):
        table.add_row(*map(Text, row))
    # A file or a pipe takes the table as wide as it is.
    options = {} if sys.stdout.isatty() else {"width": 1000}
    screen(highlight=False, markup=False, **options).print(table)
    for one in results:
        if one.state == "failed":
            tell(f"failed: {one.name}: {one.reason}")
