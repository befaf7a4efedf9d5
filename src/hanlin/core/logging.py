"""Log lines of this process: to the terminal and to log.txt, on the main rank only."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
        handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter(LINE))
        ours.addHandler(handler)
    return console


def _terminal_handler(console: Console) -> logging.Handler:
    if not console.is_terminal:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(LINE))
        return handler
    from rich.logging import RichHandler

    return RichHandler(console=console, show_path=False, markup=False, highlighter=None, log_time_format="[%X]")
