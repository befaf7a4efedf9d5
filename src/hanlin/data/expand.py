"""A source whose rows hold several records each (a text with its questions), or none, as a source of these records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hanlin.core.errors import DataError
from hanlin.data.sources import Source

__all__ = ["expand"]

Records = Callable[[Any], Sequence[Any]]


@runtime_checkable
class HoldsSeveral(Protocol):
    """Samples of a family of which a row of a file may hold several records, or none."""

    @property
    def records(self) -> Records | None:
        """Finds the records in a row; None where each row is one."""
        ...


def expand(source: Source, samples: Any) -> Source:
    """The source of the records that `samples` (a family's) finds in each row."""
    records = samples.records if isinstance(samples, HoldsSeveral) else None
    return source if records is None else _Expanded(source, records)


class _Expanded:
    """Reads every row once to count; a row that cannot be read counts as one record, and fails again as such."""

    def __init__(self, source: Source, records: Records) -> None:
        self._source, self._records = source, records
        counts = np.array([_count(source, records, row) for row in range(len(source))], dtype=np.int64)
        self._rows = np.repeat(np.arange(len(source)), counts)
        self._starts = np.cumsum(counts) - counts
        if len(self._rows) == 0:
            raise DataError(f"{source.where(0)}: none of the {len(source)} rows holds a record to learn or to score")

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        row = int(self._rows[number])
        return self._records(self._source[row])[number - int(self._starts[row])]

    def where(self, number: int) -> str:
        return self._source.where(int(self._rows[number]))


def _count(source: Source, records: Records, row: int) -> int:
    try:
        return len(records(source[row]))
    except DataError:
        return 1
