"""How far long work is, on standard error: a bar with the time left on a terminal, else a line every half minute.

Never both, and nothing from ranks but the main one, or where a program of the user's wants to see nothing. A command
that does something else for half a minute, in one call or in a loop that nobody counts, says that it is at work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

from hanlin.core.language import translate, translated
from hanlin.core.logging import is_quiet
from hanlin.core.ranks import read_ranks
from hanlin.core.terminal import shows_progress

__all__ = ["LINE_SECONDS", "at_work", "counted", "idle", "progress"]

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal: under nohup, in a batch system."""

_LOOK_SECONDS = 1.0

Item = TypeVar("Item")
Advance = Callable[[float], None]
"""Is told how much more has been done."""


@contextmanager
def progress(title: str, total: float, *, shows: bool = True, has_bar: bool = True) -> Iterator[Advance]:
    """Show how much of `total` (of anything; 0: nobody knows) is done while the block lasts.

    shows: False: do not; has_bar: False: not on a terminal, which shows something else.
    """
    if not shows or is_quiet() or not read_ranks().is_main:
        yield lambda _: None
    elif sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        with _bar(title, total) if has_bar else nullcontext(lambda _: None) as advance:
            yield advance
    else:
        lines, watch = _Lines(title, total), _WATCH.get()
        with nullcontext() if watch is None else watch.telling(lines):
            yield lines.advance


def counted(
    items: Iterable[Item], title: str, total: int, *, shows: bool = True, has_bar: bool = True
) -> Iterator[Item]:
    """The items, and how many of them have been taken."""
    with progress(title, total, shows=shows, has_bar=has_bar) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def at_work(name: str) -> Iterator[None]:
    """Let no half minute pass without a word on standard error while a command works; name: the command's."""
    if _WATCH.get() is not None or not read_ranks().is_main:  # a command within a command; another process speaks
        yield
        return
    watch, ended = _Watch(name), threading.Event()
    token = _WATCH.set(watch)
    thread = threading.Thread(target=watch.run, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _WATCH.reset(token)


@contextmanager
def idle() -> Iterator[None]:
    """While a command waits for others: for what is asked of it, for processes that speak themselves."""
    watch = _WATCH.get()
    with nullcontext() if watch is None else watch.pausing():
        yield


@contextmanager
def _bar(title: str, total: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as bar:
        task = bar.add_task(translated(title, sys.stderr), total=total or None)
        yield lambda more: bar.advance(task, more)


class _Lines:
    """Says at most every LINE_SECONDS how far the work is."""

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self.begin = self.told = time.monotonic()
        self._translate = translate()  # a watch's thread does not know it

    def advance(self, more: float) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.told >= LINE_SECONDS and self.done:
            self.tell(now)

    def tell(self, now: float) -> None:
        self.told = now
        if self.total and self.done:
            left = max(0.0, self.total - self.done) * (now - self.begin) / self.done
            share = f"{min(1.0, self.done / self.total):.0%}, {timedelta(seconds=round(left))} left"
        else:
            share = f"under way for {timedelta(seconds=round(now - self.begin))}"
        print(self._translate(f"{self.title}: {share}", sys.stderr), file=sys.stderr, flush=True)


class _Watch:
    """Looks, in a thread, when something was said last."""

    def __init__(self, name: str) -> None:
        self._all, self._pauses = _Lines(name, 0), 0
        self._open: list[_Lines] = []

    def run(self, ended: threading.Event) -> None:
        while not ended.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        lines, now = (self._open or [self._all])[-1], time.monotonic()
        said = getattr(sys.stderr, "said", 0.0)  # of a SteadyStream
        if not self._pauses and not is_quiet() and now - max(lines.told, self._all.told, said) >= LINE_SECONDS:
            self._all.told = now
            lines.tell(now)

    @contextmanager
    def telling(self, lines: _Lines) -> Iterator[None]:
        """Let these lines tell what is under way."""
        self._open.append(lines)
        try:
            yield
        finally:
            self._open.remove(lines)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._all.told = time.monotonic()


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)
