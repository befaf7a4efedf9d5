"""`hanlin compare`: the cells of a grid checked, run and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from hanlin.api.comparison.checking import check_cells
from hanlin.api.comparison.grid import Cell, Grid, read_grid
from hanlin.api.comparison.page import write_comparison
from hanlin.api.comparison.results import CellResult
from hanlin.api.comparison.running import RunCommand, found_results, run_cells, run_here
from hanlin.core.errors import ConfigError

__all__ = ["compare", "planned_cells", "write_results"]


def planned_cells(grid: Grid, only: Sequence[str] = ()) -> list[Cell]:
    """The checked cells of a grid; only: patterns of names, such as bee/* (none: all).

    Raises: ConfigError that lists all problems of all of them.
    """
    cells = grid.cells()
    chosen = [cell for cell in cells if not only or any(fnmatchcase(cell.name, pattern) for pattern in only)]
    if not chosen:
        raise ConfigError(f"--only {' '.join(only)}: there is no such cell; there are {cells[0].name}, ...")
    check_cells(grid, chosen)
    return chosen


def compare(
    file: Path,
    say: Callable[[str], None] = print,
    *,
    only: Sequence[str] = (),
    options: Sequence[str] = (),
    run: RunCommand = run_here,
) -> list[CellResult]:
    """Run what is not done of a grid, and write what came of all of it.

    say: gets a line when something begins or ends; only: see `planned_cells`; options: of `hanlin train` and `hanlin
    evaluate`; run: what runs a command.
    Raises: ConfigError before anything starts; Interrupted, when all that was done is written.
    """
    grid = read_grid(file)
    cells = planned_cells(grid, only)
    write = partial(write_results, grid, file.stem)
    try:
        run_cells(grid, cells, say, options=options, run=run, after=write)
    finally:
        write()
    return found_results(grid.cells())


def write_results(grid: Grid, title: str) -> list[Path]:
    """The table and the page of what there is."""
    return write_comparison(grid.folder, title, found_results(grid.cells()))
