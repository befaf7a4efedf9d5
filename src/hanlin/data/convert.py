"""Records of one file form into another: JSON lines, and the binary form of CPM-Bee's original."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hanlin.data.sources import open_records
from hanlin.data.sources.bee import write_bee
from hanlin.data.sources.jsonl import write_jsonl


def convert_file(source: Path, target: Path) -> int:
    """Write each record of `source` as `write_records` does; returns the number of rows.

    Raises: DataError naming file and line.
    """
    rows = open_records(source)
    return write_records(target, (rows[row] for row in range(len(rows))))


def write_records(target: Path, records: Iterable[Any]) -> int:
    """target: a name in .jsonl or .json is JSON lines; any other `folder/name` is a new data file `name` of the binary
    data set `folder`. Returns the number of rows.
    """
    if target.suffix in (".jsonl", ".json"):
        return write_jsonl(target, records)
    return write_bee(target.parent, target.name, records, form="pickle").nlines
