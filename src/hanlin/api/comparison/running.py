"""The cells of a grid, one after the other: each is trained, scored and measured by plain commands of its own.

A cell that fails is told and left behind. What is done is not done again: a killed comparison goes on with the cell in
which it was, and that cell with its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from hanlin.api.comparison.checking import general_before
from hanlin.api.comparison.grid import Cell, Grid, as_words, general_changes
from hanlin.api.comparison.results import CellResult, measure, read_result, write_result
from hanlin.core.errors import ConfigError, HanlinError
from hanlin.core.files import read_json_object
from hanlin.core.locks import lock_file
from hanlin.core.progress import progress
from hanlin.parallel.launch import EXIT_SAVED, RankProcess, run_together, start_process
from hanlin.recipe.reading import Change, load_recipe

__all__ = ["Interrupted", "RunCommand", "found_results", "run_cells", "run_here"]

BEFORE = "before"
"""In the folder of a grid: the general text by what cells start from."""
LOG = "compare.log"
"""In the run folder of a cell: what its commands say."""
_MOST_REASON = 400
_LOCK = ".compare.lock"


class Interrupted(Exception):  # noqa: N818  no mistake
    """A signal ended a command, which has saved what it could; the same comparison goes on."""


RunCommand = Callable[[Sequence[str], Path], str]
"""Runs `hanlin WORDS`, whose words go behind a file; returns what went wrong, empty where nothing did.

Raises: Interrupted.
"""


def run_here(words: Sequence[str], output: Path) -> str:
    """In a process of its own, which dies with this one and gets its signals."""
    begin = output.stat().st_size if output.exists() else 0
    process = start_process([sys.executable, "-m", "hanlin", *words], output=output)
    end = run_together([RankProcess(f"hanlin {words[0]}", process, output, begin)])
    if end.code == 0:
        return ""
    if end.code == EXIT_SAVED or not end.text:  # a signal, that was passed on
        raise Interrupted
    return _reason(output.read_bytes()[begin:].decode("utf-8", "replace"), end.text)


def _reason(said: str, ended: str) -> str:
    """The message that a command ended with, else how it ended and its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((number for number, line in reversed([*enumerate(lines)]) if line.startswith("hanlin: ")), None)
    if first is not None:
        text = "; ".join(lines[first:]).removeprefix("hanlin: ")
    else:
        text = ": ".join([ended.splitlines()[0], *lines[-1:]])
    return text if len(text) <= _MOST_REASON else f"{text[:_MOST_REASON]}..."


@dataclass(frozen=True)
class _Part:
    """A command of a cell, and the file of its scores."""

    title: str
    words: tuple[str, ...]
    scores: Path | None = None


def found_results(cells: Sequence[Cell]) -> list[CellResult]:
    """What is known of each cell."""
    return [read_result(cell.folder) or _not_yet(cell) for cell in cells]


def _not_yet(cell: Cell) -> CellResult:
    return CellResult(cell.recipe, cell.method, cell.seed, "not yet")


def run_cells(
    grid: Grid,
    cells: Sequence[Cell],
    say: Callable[[str], None],
    *,
    options: Sequence[str] = (),
    run: RunCommand = run_here,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Run the cells that are not done; options: of `hanlin train` and `hanlin evaluate` (--nproc and the like); after:
    called when the result of a cell is written.

    Raises: Interrupted.
    """
    begin, ran = time.monotonic(), 0
    for number, cell in enumerate(cells, start=1):
        identity, found = _identity(grid, cell), read_result(cell.folder)
        if found is not None and found.state == "done" and found.identity == identity:
            continue
        cell.folder.mkdir(parents=True, exist_ok=True)
        try:
            with lock_file(cell.folder / _LOCK, cell.folder):
                result = _run_cell(grid, cell, partial(_say_at, say, f"[{number}/{len(cells)}]"), options, run)
        except ConfigError as error:  # another comparison is at it
            say(f"[{number}/{len(cells)}] {cell.name}: left out: {error}")
            continue
        write_result(cell.folder, replace(result, identity=identity))
        after()
        ran += 1
        left = timedelta(seconds=round((time.monotonic() - begin) / ran * (len(cells) - number)))
        end = result.state if result.state == "done" else f"failed: {result.reason}"
        say(f"[{number}/{len(cells)}] {cell.name}: {end}" + (f" (about {left} left)" if number < len(cells) else ""))


def _say_at(say: Callable[[str], None], place: str, text: str) -> None:
    say(f"{place} {text}")


def _identity(grid: Grid, cell: Cell) -> str:
    """Of all that decides what comes of a cell, as far as the file and the recipe tell it."""
    recipe = load_recipe(cell.source, cell.changes).model_dump(mode="json")
    facts = [recipe, cell.score, None if grid.general is None else grid.general.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _run_cell(
    grid: Grid, cell: Cell, say: Callable[[str], None], options: Sequence[str], run: RunCommand
) -> CellResult:
    result, scores = _not_yet(cell), {}
    for part in _parts(grid, cell, options):
        if part.title == "before" and part.scores is not None and part.scores.is_file():
            scores[part.title] = read_json_object(part.scores)
            continue
        say(f"{cell.name}: {part.title} ({cell.folder / LOG})")
        with progress(f"{cell.name}: {part.title}", 0):
            reason = run(part.words, cell.folder / LOG)
        if reason:
            return replace(result, state="failed", reason=f"{part.title}: {reason}")
        if part.scores is not None:
            scores[part.title] = read_json_object(part.scores)
    try:
        measures = measure(cell.folder, scores["evaluate"], cell.score)
    except HanlinError as error:
        return replace(result, state="failed", reason=str(error))
    before, after = (scores.get(title, {}).get("loss", {}).get("loss") for title in ("before", "general"))
    measures = replace(measures, general_before=before, general_after=after)
    return replace(result, state="done", measures=measures, scores=scores["evaluate"])


def _parts(grid: Grid, cell: Cell, options: Sequence[str]) -> list[_Part]:
    source, folder = str(cell.source), cell.folder

    def scored(title: str, changes: Sequence[Change], target: Path, *words: str) -> _Part:
        json_words = ("--json", str(target), "--overwrite")
        return _Part(title, ("evaluate", source, *as_words(changes), *words, *json_words, *options), target)

    parts = [
        _Part("train", ("train", source, *as_words(cell.changes), *options)),
        scored("evaluate", cell.changes, folder / "scores.json"),
    ]
    if grid.general is not None:
        _, before = general_before(grid, cell)
        own = grid.folder / BEFORE / _before_key(cell, before)
        own.mkdir(parents=True, exist_ok=True)
        started = [*before, Change("run.folder", str(own), "general")]
        parts += [
            scored("before", started, own / "scores.json", "--weights", "base"),
            scored("general", [*cell.changes, *general_changes(grid.general)], folder / "general.json"),
        ]
    return parts


def _before_key(cell: Cell, changes: Sequence[Change]) -> str:
    """Cells that start from the same weights share what these say of the general text; fresh ones differ by seed."""
    recipe = load_recipe(cell.source, changes)
    facts: dict[str, Any] = recipe.model_dump(mode="json", exclude={"train", "tuning", "run"})
    base = recipe.model.base
    files = [] if base is None else [base] if base.is_file() else sorted(base.rglob("*"))
    facts["files"] = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    facts["seed"] = recipe.run.seed if base is None else None
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
