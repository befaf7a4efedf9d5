"""Whether every cell of a grid can run, before any does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hanlin.api.comparison.grid import Cell, Grid, general_changes
from hanlin.checking import check, check_source
from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import Change, Problem, read_recipe
from hanlin.recipe.settings import Recipe

__all__ = ["check_cells", "general_before"]


def check_cells(grid: Grid, cells: Sequence[Cell]) -> None:
    """Look at each cell as `hanlin check` does. The model and its weights are looked at once for all seeds.

    Raises: ConfigError that lists all problems, by the cells that have them.
    """
    found: dict[str, list[str]] = {}
    checked: set[tuple[str, str]] = set()
    for cell in cells:
        is_first = (cell.recipe, cell.method) not in checked
        checked.add((cell.recipe, cell.method))
        for problem in _problems(grid, cell, is_first=is_first):
            found.setdefault(str(problem), []).append(cell.name)
    if found:
        lines = [f"  {_shown(names)}: {text}" for text, names in found.items()]
        raise ConfigError("\n".join([f"{len(found)} problems of {len(cells)} cells, so none was started:", *lines]))


def _shown(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _problems(grid: Grid, cell: Cell, *, is_first: bool) -> Iterator[Problem]:
    if not is_first:
        draft = read_recipe(cell.source, cell.changes)
        yield from draft.problems
        if draft.recipe is not None and not draft.problems:
            yield from check(draft.recipe, draft.places, purpose="train", with_torch=False)
        return
    checked = check_source(cell.source, cell.changes, "train")
    yield from checked.problems
    if checked.recipe is None or checked.problems:
        return
    yield from _score_problems(cell, checked.recipe)
    # What answers is there only when it was trained: what is looked at is files and rows.
    yield from check(checked.recipe, purpose="evaluate", with_torch=False)
    if grid.general is not None:
        yield from check_source(*general_before(grid, cell), "evaluate").problems


def _score_problems(cell: Cell, recipe: Recipe) -> Iterator[Problem]:
    task, dot, metric = cell.score.partition(".")
    if not (task and dot and metric):
        yield Problem("score", f"{cell.score!r} is no TASK.METRIC of hanlin evaluate, such as likelihood.accuracy", "")
    elif task not in recipe.evaluate.tasks:
        tasks = ", ".join(recipe.evaluate.tasks)
        yield Problem("score", f"{cell.score}, but evaluate.tasks are {tasks}; add {task} or name one of these", "")


def general_before(grid: Grid, cell: Cell) -> tuple[Path, list[Change]]:
    """Recipe and changes that score the general text by what a cell starts from, whatever it tunes."""
    assert grid.general is not None, "no general text"
    plain = [change for change in cell.changes if change.key.partition(".")[0] not in ("tuning", "train")]
    untuned = Change("tuning.method", "full", "general")
    return cell.source, [*plain, untuned, *general_changes(grid.general)]
