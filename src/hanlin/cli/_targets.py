"""Files that a command writes where its user says: none that is there is replaced unless that is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.files import check_target, written_alone

__all__ = ["add_overwrite", "new_target", "sole_target"]


def add_overwrite(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")


def new_target(path: Path, *, overwrite: bool) -> Path:
    """The path of a file that is to be written, where its symbolic links lead to; to be called before the work begins.

    A device, a pipe, and an empty file hold nothing that could be lost.
    Raises: DataError for a file that is there already, for a folder, and where there is no permission.
    """
    path = check_target(path)
    if path.is_file() and path.stat().st_size and not overwrite:
        raise DataError(
            f"{path}: exists already, and nothing is replaced unasked; choose another name, or add --overwrite"
        )
    return path


@contextmanager
def sole_target(path: Path, *, overwrite: bool) -> Iterator[None]:
    """`new_target` for as long as the block lasts, alone, from all processes that ask for it here.

    Raises: ConfigError saying who else writes it; as `new_target`.
    """
    with written_alone(path):
        new_target(path, overwrite=overwrite)
        yield
