"""Log lines of this process: to the terminal and to log.txt, on the main rank only.

Inside of a program of the user's (`visiting`) they also go where that program sends its own, and all is as before at
the end.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.core.language import translate, translated
from hanlin.core.os_errors import explain
from hanlin.core.ranks import Ranks, read_ranks

if TYPE_CHECKING:
    from rich.console import Console

LINE = "%(asctime)s %(levelname)s %(message)s"

_SHOWS: ContextVar[bool | None] = ContextVar("shows", default=None)
"""Whether a program of the user's wants to see our lines; None: this process is a command's."""


def start_log(folder: Path | None = None, ranks: Ranks | None = None) -> Console:
    """Send our log lines to the terminal and to `folder`/log.txt, on the main rank only; return the terminal.

    A live display must use the returned console, so that log lines appear above it. Calling it again replaces the
    former targets.
    """
    from hanlin.core.terminal import screen  # which asks whether we are quiet

    ours = logging.getLogger("hanlin")
    _close_handlers(ours)
    ours.setLevel(logging.INFO)
    shows, has_own = _SHOWS.get(), logging.getLogger().handlers != []
    ours.propagate = bool(shows) and has_own
    is_main = (ranks or read_ranks()).is_main
    console = screen(stderr=True, quiet=not is_main or shows is False)
    if not is_main:
        ours.addHandler(logging.NullHandler())
        return console
    if shows is None or (shows and not has_own):
        ours.addHandler(_terminal_handler(console))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter(LINE))
        ours.addHandler(handler)
    return console


@contextmanager
def visiting(*, shows: bool) -> Iterator[None]:
    """Inside of a program of the user's: `start_log` writes log.txt, and what goes to the terminal (shows) goes to the
    handlers of the program's root logger, if it has any. At the end handlers, level and propagation are as they were.
    """
    ours = logging.getLogger("hanlin")
    handlers, level, propagate = list(ours.handlers), ours.level, ours.propagate
    for handler in handlers:
        ours.removeHandler(handler)
    token = _SHOWS.set(shows)
    try:
        yield
    finally:
        _SHOWS.reset(token)
        _close_handlers(ours)
        for handler in handlers:
            ours.addHandler(handler)
        ours.setLevel(level)
        ours.propagate = propagate


@contextmanager
def telling_warnings() -> Iterator[None]:
    """Tell warnings in the user's language also where a command starts no log."""
    former, logging.lastResort = logging.lastResort, logging.StreamHandler(sys.stderr)
    logging.lastResort.setLevel(logging.WARNING)
    logging.lastResort.setFormatter(_InUsersLanguage("%(message)s"))
    try:
        yield
    finally:
        logging.lastResort = former


def is_quiet() -> bool:
    """Whether a program of the user's wants to see nothing of what goes on."""
    return _SHOWS.get() is False


def _close_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log that cannot be written to ends nothing: it is said once, where there is a terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            text = f"{explain(error, Path(self.baseFilename), 'write')}; the run goes on without its log"
            print(translated(text, sys.stderr), file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # it has been told
            super().close()

    _is_told = False


class _InUsersLanguage(logging.Formatter):
    """log.txt is English whoever reads it: programs do, and those who are asked for help."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self._translate = translate()  # other threads log too

    def format(self, record: logging.LogRecord) -> str:
        message = self._translate(record.getMessage(), sys.stderr)
        return super().format(logging.makeLogRecord({**vars(record), "msg": message, "args": None}))


def _terminal_handler(console: Console) -> logging.Handler:
    if not console.is_terminal:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_InUsersLanguage(LINE))
        return handler
    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_path=False, markup=False, highlighter=None, log_time_format="[%X]")
    handler.setFormatter(_InUsersLanguage("%(message)s"))
    return handler
