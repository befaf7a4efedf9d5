"""Records of one file form into another: JSON lines, and the binary form of CPM-Bee's original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hanlin.core.errors import DataError, shorten
from hanlin.data.bad_rows import BadRow, lines_of, list_bad_rows
from hanlin.data.processor import tried
from hanlin.data.sources import BadRowError, LeftOutError, Records, open_records
from hanlin.data.sources.bee import META, write_bee
from hanlin.data.sources.jsonl import write_jsonl

__all__ = ["Conversion", "MadeRow", "convert_rows", "is_jsonl", "rows_of"]

MadeRow = tuple[str, Sequence[Any] | DataError]
"""File and line of a row, and the records that it becomes, or why there are none."""

SHOWN = 3


@dataclass
class Conversion:
    """What was written, and the rows that were not: bad ones that are dropped, and those that hold nothing."""

    num_written: int = 0
    left_out: list[BadRow] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.num_written:,} rows"
        if not self.left_out:
            return text
        shown = "; ".join(shorten(lines_of(self.left_out, SHOWN), SHOWN))
        return f"{text}, {len(self.left_out):,} left out ({shown})"


def rows_of(path: Path) -> Iterator[MadeRow]:
    """Each row of a file or folder as it is."""
    source = open_records(path)
    for number in range(len(source)):
        yield source.where(number), tried(_one, source, number)


def convert_rows(rows: Iterable[MadeRow], target: Path, policy: Literal["error", "drop"] = "error") -> Conversion:
    """Write the records of rows to `target`: JSON lines for a name in .jsonl or .json, else a new binary data set,
    which is a folder with one data file.

    policy: of bad rows. Raises: DataError that lists them, and when nothing is left; then nothing is written.
    """
    done = Conversion()
    records = _good(rows, policy, done)
    if is_jsonl(target):
        done.num_written = write_jsonl(target, records)
        return done
    if (target / META).exists():
        raise DataError(f"{target}: is a binary data set already; choose another folder, one for each set of rows")
    done.num_written = write_bee(target, target.name, records, form="pickle").nlines
    return done


def is_jsonl(target: Path) -> bool:
    return target.suffix in (".jsonl", ".json")


def _good(rows: Iterable[MadeRow], policy: str, done: Conversion) -> Iterator[Any]:
    bad, num_rows, num_records = [], 0, 0
    for where, made in rows:
        num_rows += 1
        if not isinstance(made, DataError):
            num_records += len(made)
            yield from made
            continue
        row = where, made.reason if isinstance(made, BadRowError) else str(made).removeprefix(f"{where}: ")
        (done.left_out if policy == "drop" or isinstance(made, LeftOutError) else bad).append(row)
    if bad:
        head = f"{len(bad):,} of {num_rows:,} rows cannot be used."
        raise DataError(list_bad_rows(bad, head, advice="Correct these rows, or leave them out with --bad-rows drop"))
    if not num_records:
        raise DataError(list_bad_rows(done.left_out, "No row is left.", advice="Look at the file, or name another one"))


def _one(source: Records, number: int) -> list[Any]:
    return [source[number]]
