"""Folders for what is made once for many tests; they go with the process that made them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

_HELD: list[TemporaryDirectory[str]] = []


def scratch() -> Path:
    """A new empty folder. That of a rank (tests/parallel/ranks.py) goes when all ranks have ended."""
    _HELD.append(TemporaryDirectory(prefix="hanlin-tests-"))
    return Path(_HELD[-1].name)
