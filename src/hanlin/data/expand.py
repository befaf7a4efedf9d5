"""What is read of a file: its first rows, and the records in each of them (a text with its questions), if several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hanlin.core.errors import DamagedFileError, DataError
from hanlin.data.bad_rows import BadRow
from hanlin.data.forms.content import Side
from hanlin.data.forms.detection import InForm, tell_form
from hanlin.data.processor import SampleProcessor
from hanlin.data.sources import LeftOutError, Records
from hanlin.data.transform import open_transformed
from hanlin.recipe.settings import DataSettings

__all__ = ["FileRecords", "as_records", "first_records", "open_first", "open_part", "open_rows", "records_in"]

FindRecords = Callable[[Any], Sequence[Any]]


@runtime_checkable
class HoldsSeveral(Protocol):
    """Processor of a family of which a row of a file may hold several records, or none."""

    @property
    def records(self) -> FindRecords | None:
        """Finds the records in a row, and raises LeftOutError for a row of none; None where each row is one."""
        ...


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


@dataclass(frozen=True)
class FileRecords:
    """The records that are read of a file. `num_rows`: the rows that hold them, and the `left_out` ones between them;
    num_in_file: all rows of the file; form: the rows, where each of them is one record, and how they are read.
    """

    records: Records
    num_rows: int
    num_in_file: int
    left_out: Sequence[BadRow] = ()
    form: InForm | None = None

    @property
    def fingerprint(self) -> str:
        return self.records.fingerprint

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Any:
        return self.records[number]

    def where(self, number: int) -> str:
        return self.records.where(number)

    @property
    def read_as(self) -> str:
        """The form of the rows, and how it is known."""
        return "" if self.form is None else str(self.form.reading)

    def noted(self, number: int) -> tuple[Any, Sequence[str]]:
        """A record, and what is to be said of the row that it was made of."""
        return (self.records[number], ()) if self.form is None else self.form.noted(number)

    def answered(self, number: int, record: Any) -> Any:
        """The row of a record with the answer that stands in the record by now, in the row's own form."""
        return record if self.form is None else self.form.answered(number, record)


def open_rows(
    path: Path,
    settings: DataSettings,
    processor: SampleProcessor,
    *,
    is_asked: bool = False,
    side: Side | None = None,
) -> Records:
    """The rows of a file or folder, through `data.transform`, as records of the family if they have a known form.

    is_asked: they wait for answers; side: which answer of preference rows is read.
    Raises: DataError.
    """
    return as_records(open_transformed(path, settings), path, settings, processor, is_asked=is_asked, side=side)


def as_records(
    rows: Records,
    path: Path,
    settings: DataSettings,
    processor: SampleProcessor,
    *,
    is_asked: bool = False,
    side: Side | None = None,
) -> Records:
    """`open_rows` of rows that are open."""
    if isinstance(processor, HoldsSeveral) and processor.records is not None:
        if side is not None:
            raise DataError(f"{path}: data.options reads raw rows of a data set; preference rows are none of them")
        return rows
    return InForm(rows, tell_form(rows, processor, settings.format, is_asked=is_asked).of_side(side, str(path)))


def open_part(
    path: Path,
    settings: DataSettings,
    processor: SampleProcessor,
    *,
    share: float = 1.0,
    limit: int | None = None,
    is_asked: bool = False,
    side: Side | None = None,
) -> FileRecords:
    """The records of a file or folder: of its first share of rows the first `limit` records.

    is_asked: they wait for answers; side: which answer of preference rows is read.
    Raises: DataError when nothing is left.
    """
    rows = open_rows(path, settings, processor, is_asked=is_asked, side=side)
    return _find_some(_first_share(path, rows, share), processor, limit, len(rows))


def open_first(
    path: Path,
    settings: DataSettings,
    processor: SampleProcessor,
    most: int,
    *,
    share: float = 1.0,
    limit: int | None = None,
    side: Side | None = None,
) -> tuple[FileRecords, bool]:
    """What `open_part` opens, but of its first `most` rows only, and whether these are all.

    Raises: DataError, as `open_part` does.
    """
    rows = open_rows(path, settings, processor, side=side)
    return first_records(rows, path, processor, most, share=share, limit=limit)


def first_records(
    rows: Records,
    path: Path,
    processor: SampleProcessor,
    most: int,
    *,
    share: float = 1.0,
    limit: int | None = None,
) -> tuple[FileRecords, bool]:
    """`open_first` of rows that are open."""
    part = _first_share(path, rows, share)
    if len(part) <= most:
        return _find_some(part, processor, limit, len(rows)), True
    found = _find(FirstRecords(part, most), processor, None, len(rows))
    if limit is None or len(found) < limit:
        return found, False
    return _find(FirstRecords(part, most), processor, limit, len(rows)), True


def records_in(rows: Iterable[Any], processor: SampleProcessor) -> list[Any]:
    """The records that a family's processor finds in the rows of a file.

    Raises: DataError.
    """
    records = processor.records if isinstance(processor, HoldsSeveral) else None
    return list(rows) if records is None else [record for row in rows for record in _of_row(records, row)]


def _of_row(records: FindRecords, row: Any) -> Sequence[Any]:
    try:
        return records(row)
    except LeftOutError:
        return []


def _first_share(path: Path, rows: Records, share: float) -> Records:
    """Raises: DataError when it is none."""
    if not (count := int(share * len(rows))):
        raise DataError(
            f"{path}: {share:g} of its {len(rows)} rows are none; raise data.train_share or data.eval_share"
        )
    return rows if count == len(rows) else FirstRecords(rows, count)


def _find_some(rows: Records, processor: SampleProcessor, limit: int | None, num_in_file: int) -> FileRecords:
    """Raises: DataError when there are none."""
    found = _find(rows, processor, limit, num_in_file)
    if len(found) == 0:
        raise DataError(f"{rows.where(0)}: none of the {found.num_rows} rows holds a record to learn or to score")
    return found


def _find(rows: Records, processor: SampleProcessor, limit: int | None, num_in_file: int) -> FileRecords:
    """The records of some rows; those of several in a row are counted by reading every row once."""
    records = processor.records if isinstance(processor, HoldsSeveral) else None
    if records is None:
        count = len(rows) if limit is None else min(limit, len(rows))
        first = rows if count == len(rows) else FirstRecords(rows, count)
        return FileRecords(first, count, num_in_file, form=_form_of(rows))
    counts, left_out = _count_all(rows, records, limit)
    found = _RecordsOfRows(rows, records, counts)
    first = found if limit is None else FirstRecords(found, min(limit, len(found)))
    return FileRecords(first, len(counts), num_in_file, left_out)


def _form_of(rows: Records) -> InForm | None:
    while isinstance(rows, FirstRecords):
        rows = rows.source
    return rows if isinstance(rows, InForm) else None


class _RecordsOfRows:
    """Several records a row; a row that cannot be read counts as one record, and fails again as such."""

    def __init__(self, source: Records, records: FindRecords, counts: np.ndarray) -> None:
        self._source, self._records = source, records
        self._rows = np.repeat(np.arange(len(counts)), counts)
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


def _count_all(rows: Records, records: FindRecords, limit: int | None) -> tuple[np.ndarray, list[BadRow]]:
    """How many records each row holds, up to the one with record number `limit`, and the rows of none."""
    counts, left_out, total = [], [], 0
    for row in range(len(rows)):
        if total == limit:
            break
        try:
            counts.append(len(records(rows[row])))
            reason = "it holds no record"
        except LeftOutError as error:
            counts.append(0)
            reason = str(error)
        except DamagedFileError:
            raise
        except DataError:
            counts.append(1)
        if counts[-1] == 0:
            left_out.append((rows.where(row), reason))
        total = total + counts[-1] if limit is None else min(total + counts[-1], limit)
    return np.array(counts, np.int64), left_out
