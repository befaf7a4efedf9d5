"""Log lines of this process: to the terminal and to log.txt, on the main rank only."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.core.os_errors import explain
from hanlin.core.ranks import Ranks, read_ranks

if TYPE_CHECKING:
    from rich.console import Console

LINE = "%(asctime)s %(levelname)s %(message)s"


def start_log(folder: Path | None = None, ranks: Ranks | None = None) -> Console:
    """Send our log lines to the terminal and to `folder`/log.txt, on the main rank only; return the terminal.

    A live display must use the returned console, so that log lines appear above it. Calling it again replaces the
    former targets.
    """
    from rich.console import Console

    ours = logging.getLogger("hanlin")
    for handler in list(ours.handlers):
        ours.removeHandler(handler)
        handler.close()
    ours.setLevel(logging.INFO)
    ours.propagate = False
    is_main = (ranks or read_ranks()).is_main
    console = Console(stderr=True, quiet=not is_main)
    if not is_main:
        ours.addHandler(logging.NullHandler())
        return console
    ours.addHandler(_terminal_handler(console))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter(LINE))
        ours.addHandler(handler)
    return console


class _LogFile(logging.FileHandler):
    """A log that cannot be written to ends nothing: it is said once, where there is a terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            print(
                f"{explain(error, Path(self.baseFilename), 'write')}; the run goes on without its log", file=sys.stderr
            )

    def close(self) -> None:
        with suppress(OSError):  # it has been told
            super().close()

    _is_told = False


def _terminal_handler(console: Console) -> logging.Handler:
    if not console.is_terminal:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(LINE))
        return handler
    from rich.logging import RichHandler

    return RichHandler(console=console, show_path=False, markup=False, highlighter=None, log_time_format="[%X]")
