"""A file of records with random access, and what a row that cannot be read looks like."""

from __future__ import annotations

from typing import Any, Protocol

from hanlin.core.errors import DataError


class BadRowError(DataError):
    """One row that cannot be used: `where` names file and line, `reason` says what is wrong with it."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class LeftOutError(DataError):
    """A row that holds nothing to learn or to score, and is left out and counted whatever `data.bad_rows` says."""


class Records(Protocol):
    """Rows of one file or folder, numbered from 0 in the file's own order."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content; equal content gives an equal fingerprint wherever it lies."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any:
        """Raises: BadRowError."""
        ...

    def where(self, row: int, /) -> str:
        """File and place of a row, as an editor understands it: `train.jsonl:17`."""
        ...


class DataFile(Records, Protocol):
    """The rows of a file or folder as they lie there; kind: what it was recognised as, in a user's words."""

    @property
    def kind(self) -> str: ...
