"""What is read of a file: its first rows, and the records in each of them (a text with its questions), if several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hanlin.core.errors import DataError
from hanlin.data.processor import SampleProcessor
from hanlin.data.sources import Records
from hanlin.data.transform import open_transformed
from hanlin.recipe.settings import DataSettings

__all__ = ["expand", "open_first", "open_part", "records_in"]

FindRecords = Callable[[Any], Sequence[Any]]


@runtime_checkable
class HoldsSeveral(Protocol):
    """Processor of a family of which a row of a file may hold several records, or none."""

    @property
    def records(self) -> FindRecords | None:
        """Finds the records in a row; None where each row is one."""
        ...


def expand(source: Records, processor: SampleProcessor) -> Records:
    """The source of the records that a family's processor finds in each row."""
    records = processor.records if isinstance(processor, HoldsSeveral) else None
    return source if records is None else _Expanded(source, records)


@dataclass(frozen=True)
class FirstRecords:
    """The first `count` rows of a source."""

    source: Records
    count: int

    @property
    def fingerprint(self) -> str:
        return f"{self.count} of {self.source.fingerprint}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        return self.source[row]

    def where(self, row: int) -> str:
        return self.source.where(row)


def open_part(
    path: Path, settings: DataSettings, processor: SampleProcessor, *, share: float = 1.0, limit: int | None = None
) -> Records:
    """The records of a file or folder: of its first share of rows the first `limit` records.

    Raises: DataError when nothing is left.
    """
    return _records_of(_first_rows(path, settings, share), processor, limit)


def open_first(
    path: Path,
    settings: DataSettings,
    processor: SampleProcessor,
    most: int,
    *,
    share: float = 1.0,
    limit: int | None = None,
) -> tuple[Records, bool]:
    """What `open_part` opens, but of its first `most` rows only, and whether these are all.

    Raises: DataError, as `open_part` does.
    """
    rows = _first_rows(path, settings, share)
    if len(rows) <= most:
        return _records_of(rows, processor, limit), True
    records = expand(FirstRecords(rows, most), processor)
    return _at_most(records, limit), limit is not None and len(records) >= limit


def _first_rows(path: Path, settings: DataSettings, share: float) -> Records:
    """The first share of a file's rows, transformed.

    Raises: DataError when it is none.
    """
    rows = open_transformed(path, settings)
    if not (count := int(share * len(rows))):
        raise DataError(
            f"{path}: {share:g} of its {len(rows)} rows are none; raise data.train_share or data.eval_share"
        )
    return _at_most(rows, count)


def _records_of(rows: Records, processor: SampleProcessor, limit: int | None) -> Records:
    """Raises: DataError when there is none."""
    records = expand(rows, processor)
    if len(records) == 0:
        raise DataError(f"{rows.where(0)}: none of the {len(rows)} rows holds a record to learn or to score")
    return _at_most(records, limit)


def _at_most(records: Records, count: int | None) -> Records:
    return records if count is None or count >= len(records) else FirstRecords(records, count)


def records_in(rows: Iterable[Any], processor: SampleProcessor) -> list[Any]:
    """The records that a family's processor finds in the rows of a file.

    Raises: DataError.
    """
    records = processor.records if isinstance(processor, HoldsSeveral) else None
    return list(rows) if records is None else [record for row in rows for record in records(row)]


class _Expanded:
    """Reads every row once to count; a row that cannot be read counts as one record, and fails again as such."""

    def __init__(self, source: Records, records: FindRecords) -> None:
        self._source, self._records = source, records
        counts = np.array([_count(source, records, row) for row in range(len(source))], dtype=np.int64)
        self._rows = np.repeat(np.arange(len(source)), counts)
        self._starts = np.cumsum(counts) - counts

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


def _count(source: Records, records: FindRecords, row: int) -> int:
    try:
        return len(records(source[row]))
    except DataError:
        return 1
