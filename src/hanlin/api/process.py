"""What a call leaves behind in the program that made it: nothing.

Training and evaluation send log lines, seed the global random numbers and set torch's threads. Around them all of that
is put back; the signals are by `training/signals.py`, and nobody changes the environment or the current folder of a
process that is alone. Since they share the global random numbers, one run at a time is trained or evaluated in a
process; another thread's waits for it. Models that answer share nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hanlin.core.device import pick_device
from hanlin.core.errors import HanlinError
from hanlin.core.extensions import trusting
from hanlin.core.logging import visiting
from hanlin.core.os_errors import explain
from hanlin.core.ranks import read_ranks
from hanlin.core.seeds import random_states, restore_random_states
from hanlin.recipe.reading import Change, Overrides, RecipeSource, read_changes
from hanlin.recipe.settings import Recipe

__all__ = ["alone", "called", "guest", "joined", "named_by", "with_threads"]

_ONE_RUN = threading.RLock()


@contextmanager
def called(*given: Any, trust_code: bool = False) -> Iterator[None]:
    """Around a call: what the system refuses is told in our words, and only the Python files are run that the caller
    names in `given` (docs/security.md), or all of them (trust_code).

    Raises: HanlinError.
    """
    try:
        with trusting(None if trust_code else set(_python_files(given))):
            yield
    except OSError as error:
        raise HanlinError(explain(error)) from error


def named_by(source: RecipeSource | None, overrides: Overrides) -> tuple[list[Any], Any]:
    """The overrides, read, and what of recipe and overrides the caller wrote down: all but a file's content."""
    changes = read_changes(overrides)
    written = source.model_dump() if isinstance(source, Recipe) else source if isinstance(source, Mapping) else None
    return changes, [written, [change.value for change in changes if isinstance(change, Change)]]


@contextmanager
def alone(*, quiet: bool) -> Iterator[None]:
    """Around what sends log lines: the log of the program is as before at its end; another thread's call waits.

    quiet: nothing is shown.
    """
    with _ONE_RUN, visiting(shows=not quiet):
        yield


@contextmanager
def guest(device: str, *, quiet: bool) -> Iterator[None]:
    """Around a run: log, global random numbers and threads of the program are as before at its end.

    device: `run.device` of the recipe, whose random numbers count too; quiet: the lines go to log.txt alone.
    """
    import torch

    with alone(quiet=quiet):
        where = pick_device(device)
        states, threads = random_states(where), torch.get_num_threads()
        try:
            yield
        finally:
            restore_random_states(states, where)
            torch.set_num_threads(threads)


@contextmanager
def joined(device: str, timeout_seconds: float = 1800) -> Iterator[None]:
    """Together with the other ranks, where a launcher has started several; each of them must call it.

    Raises: RankError, ConfigError.
    """
    if read_ranks().world == 1:
        yield
        return
    from hanlin.parallel.failure_report import report_failures

    with report_failures(pick_device(device), timeout_seconds=timeout_seconds):
        yield


@contextmanager
def with_threads(threads: int | None) -> Iterator[None]:
    """With `run.threads` of a recipe; None: as they are."""
    import torch

    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _python_files(values: Any) -> Iterator[Path]:
    """The Python files that stand somewhere in values."""
    match values:
        case str() | Path() if str(values).endswith(".py"):
            yield Path(values)
        case str() | bytes():
            return
        case Mapping():
            yield from _python_files(list(values.values()))
        case list() | tuple() | set():
            for value in values:
                yield from _python_files(value)
