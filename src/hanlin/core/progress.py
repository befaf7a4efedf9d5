"""How far long work is, on standard error: a bar with the time left on a terminal, else a line every half minute.

Never both, and nothing from ranks but the main one, or where a program of the user's wants to see nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from hanlin.core.language import translated
from hanlin.core.logging import is_quiet
from hanlin.core.ranks import read_ranks
from hanlin.core.terminal import shows_progress

__all__ = ["LINE_SECONDS", "counted", "progress"]

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal: under nohup, in a batch system."""

Item = TypeVar("Item")
Advance = Callable[[float], None]
"""Is told how much more has been done."""


@contextmanager
def progress(title: str, total: float, *, shows: bool = True) -> Iterator[Advance]:
    """Show how much of `total` (of anything) is done while the block lasts; shows: False: do not."""
    if not shows or is_quiet() or not read_ranks().is_main:
        yield lambda _: None
    elif sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _Lines(title, total).advance


def counted(items: Iterable[Item], title: str, total: int, *, shows: bool = True) -> Iterator[Item]:
    """The items, and how many of them have been taken."""
    with progress(title, total, shows=shows) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _bar(title: str, total: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as bar:
        task = bar.add_task(translated(title, sys.stderr), total=total)
        yield lambda more: bar.advance(task, more)


class _Lines:
    """Says at most every LINE_SECONDS how far the work is."""

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self.begin = self.told = time.monotonic()

    def advance(self, more: float) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.told >= LINE_SECONDS and self.done:
            self.told = now
            left = max(0.0, self.total - self.done) * (now - self.begin) / self.done
            share = (
                f"{self.done / self.total:.0%}, {timedelta(seconds=round(left))} left" if self.total else "under way"
            )
            print(translated(f"{self.title}: {share}", sys.stderr), file=sys.stderr, flush=True)
