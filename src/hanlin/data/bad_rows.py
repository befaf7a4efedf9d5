"""Rows that cannot be used: how they are listed, and what is left without them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from hanlin.core.errors import DamagedFileError, DataError, shorten
from hanlin.data.sources import BadRowError, Records

__all__ = [
    "LISTED_ROWS",
    "BadRow",
    "UsableRecords",
    "lines_of",
    "list_bad_rows",
    "list_dropped",
    "try_records",
    "usable_records",
]

LISTED_ROWS = 50
_ALIKE = 3
_VALUES = re.compile(r"(?<!\w)'[^'\n]*'(?!\w)|\d[\d,.]*")

BadRow = tuple[str, str]
"""File and line of a row, and what is wrong with it."""


def lines_of(bad: Sequence[BadRow], places: int = LISTED_ROWS) -> list[str]:
    """A line for each reason, with the rows that it is true of: one fault of a whole file is one line. Of reasons that
    differ in numbers and values alone there are three, and how many rows have others.

    places: rows that a line names.
    """
    by_reason: dict[str, list[str]] = {}
    for where, reason in bad:
        by_reason.setdefault(reason, []).append(where)
    alike: dict[str, list[str]] = {}
    for reason in by_reason:
        alike.setdefault(_VALUES.sub("", reason), []).append(reason)
    return [line for reasons in alike.values() for line in _of_kind({one: by_reason[one] for one in reasons}, places)]


def _of_kind(by_reason: Mapping[str, Sequence[str]], places: int) -> Iterator[str]:
    listed = _ALIKE if len(by_reason) > _ALIKE + 1 else len(by_reason)  # one more is as short as to say so
    for reason, (where, *others) in islice(by_reason.items(), listed):
        yield f"{where}: {reason}" + (f" (also {_beside(where, others, places - 1)})" if others else "")
    if left_out := sum(map(len, islice(by_reason.values(), listed, None))):
        yield f"and {left_out:,} more rows like these"


def _beside(where: str, others: Sequence[str], shown: int) -> str:
    """Further places, without the name of the file where it is that of the first."""
    file = f"{where.rpartition(':')[0]}:"
    named = ", ".join(other.removeprefix(file).strip() for other in others[:shown])
    return named if len(others) <= shown else f"{named} and {len(others) - shown:,} more"


def list_bad_rows(bad: Sequence[BadRow], head: str, *, advice: str = "") -> str:
    """The first reasons with their rows, how many more there are and what to do; advice: in place of recipes'."""
    lines = [f"  {line}" for line in shorten(lines_of(bad), LISTED_ROWS)]
    if advice:
        return "\n".join([head, *lines, advice])
    advice = "Correct these rows, or choose what happens to them: data.bad_rows=drop leaves them out"
    if any(reason.startswith("too long") for _, reason in bad):
        advice += "; for too long ones raise data.max_length or set data.overlong to drop, truncate or split"
    return "\n".join([head, *lines, advice])


def list_dropped(dropped: Sequence[BadRow]) -> str:
    """What is said when the settings drop bad rows and no other row is left."""
    is_too_long = any(reason.startswith("too long") for _, reason in dropped)
    longer = (
        "; for too long ones raise data.max_length or set data.overlong to truncate or split" if is_too_long else ""
    )
    advice = f"Correct some of them, or name other files{longer}"
    return list_bad_rows(dropped, "No row is left: all were dropped.", advice=advice)


@dataclass(frozen=True)
class UsableRecords:
    """Records in the order of their files, and the rows that are none; num_tried: both together.

    places: of each record the number of its source, and its own there.
    """

    records: list[Any]
    bad: list[BadRow]
    places: list[tuple[int, int]]

    @property
    def num_tried(self) -> int:
        return len(self.records) + len(self.bad)


def try_records(sources: Sequence[Records], check: Callable[[Any], None], *, limit: int | None = None) -> UsableRecords:
    """All records, or the first `limit`, that `check` raises no DataError for."""
    found = UsableRecords([], [], [])
    for place in ((at, number) for at, one in enumerate(sources) for number in range(len(one))):
        if len(found.records) == limit:
            break
        source, number = sources[place[0]], place[1]
        try:
            record = source[number]
            check(record)
        except DamagedFileError:
            raise
        except DataError as error:
            reason = error.reason if isinstance(error, BadRowError) else str(error)
            found.bad.append((source.where(number), reason))
        else:
            found.records.append(record)
            found.places.append(place)
    return found


def usable_records(
    sources: Sequence[Records],
    check: Callable[[Any], None],
    policy: Literal["error", "drop"],
    *,
    limit: int | None = None,
) -> UsableRecords:
    """The same; policy: `data.bad_rows`.

    Raises: DataError that lists the bad rows, unless they are dropped and others are left.
    """
    found = try_records(sources, check, limit=limit)
    if found.bad and policy == "drop" and not found.records:
        raise DataError(list_dropped(found.bad))
    if found.bad and policy == "error":
        raise DataError(list_bad_rows(found.bad, f"{len(found.bad):,} of {found.num_tried:,} rows cannot be used."))
    return found
