"""Which kind of data lies at a path, and its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.files import check_regular, expanded
from hanlin.data.sources import columns, delimited, several
from hanlin.data.sources.packed import first_bytes, name_inside
from hanlin.data.sources.records import DataFile

_HEAD_BYTES = 512
_NEVER_TEXT = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")


def is_data_folder(path: Path) -> bool:
    """Whether a folder is one data set, not only a place where files lie."""
    from hanlin.data.sources.bee import META

    return (path / META).is_file() or several.is_saved_set(path)


def open_records(path: Path) -> DataFile:
    """Open JSON lines, a JSON list, CSV or TSV (each also packed by gzip or zstd), Parquet, Arrow, a folder of such
    files, of `save_to_disk` or of the original CPM-Bee binary form, or what matches a pattern (`data/*.jsonl`).

    Raises: DataError when there is no such file or it is no data at all.
    """
    from hanlin.data.sources.bee import META, BeeSource

    path = expanded(Path(path))
    if several.is_pattern(path):
        return _open_all(several.each_once(file for one in several.matches(path) for file in _files_at(one)))
    if path.is_dir():
        return _open_all(_files_at(path))
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path (it is relative to where you run hanlin)")
    check_regular(path, DataError)
    return BeeSource(path.parent) if path.name == META else open_file(path)


def _files_at(path: Path) -> list[Path]:
    """The files that hold the rows of a file or folder.

    Raises: DataError.
    """
    from hanlin.data.sources.bee import META

    if not path.is_dir():
        return [path]
    if (path / META).is_file():
        return [path / META]
    return several.saved_files(path) if several.is_saved_set(path) else several.files_in_folder(path)


def opening_bytes(path: Path) -> int:
    """How much is read to open what lies at a path: all of a text, to find its rows; of other files next to nothing."""
    path = expanded(path)
    try:
        found = several.matches(path) if several.is_pattern(path) else [path]
        files = [file for one in found for file in ([one] if one.is_file() else several.files_in_folder(one))]
    except DataError:
        return 0  # another kind of folder, or wrong, which is said when it is opened
    return sum(file.stat().st_size for file in files if name_inside(file).suffix.lower() not in columns.ENDINGS)


def _open_all(paths: Sequence[Path]) -> DataFile:
    sources = [open_records(path) for path in paths]
    return sources[0] if len(sources) == 1 else several.ConcatenatedRecords(sources)


def is_table(path: Path) -> bool:
    """Whether a file's rows cannot be told by its line ends alone: all kinds but JSON lines and plain text.

    Raises: DataError.
    """
    from hanlin.data.sources.json_list import is_json_list

    ending = name_inside(path).suffix.lower()
    if ending in (*delimited.ENDINGS, *columns.ENDINGS) or columns.is_columns(first_bytes(path, 8)):
        return True
    return ending in several.JSON_ENDINGS and is_json_list(path)


def open_file(path: Path, only: str | None = None) -> DataFile:
    """A file, by its first bytes, and by its ending where these are text.

    only: the one key of its rows that is wanted; columns of a table besides it are not read.
    Raises: DataError, also where no row can have that key.
    """
    from hanlin.data.sources.json_list import JsonListSource, is_json_list
    from hanlin.data.sources.jsonl import JsonlSource

    head, ending = first_bytes(path, 8), name_inside(path).suffix.lower()
    if columns.is_columns(head) or ending in columns.ENDINGS:
        _check_columns(path, head, ending)
        return columns.ColumnSource(path, only)
    if ending in delimited.ENDINGS:
        table = delimited.DelimitedSource(path)
        columns.check_column(path, table.names, only)
        return table
    _check_text(path)
    return JsonListSource(path) if is_json_list(path) else JsonlSource(path)


def _check_text(path: Path) -> None:
    """Raises: DataError of a file whose first bytes are no text in any encoding."""
    head = first_bytes(path, _HEAD_BYTES)
    if sum(byte in _NEVER_TEXT for byte in head) > _HEAD_BYTES // 10:
        raise DataError(f"{path}: is no text, and nothing else with rows: it begins with {head[:8]!r}")


def _check_columns(path: Path, head: bytes, ending: str) -> None:
    """Raises: DataError where a name and a file do not agree."""
    if name_inside(path) != path:
        raise DataError(f"{path}: Parquet or Arrow inside a packed file; unpack it, these are packed themselves")
    if not head:
        raise DataError(f"{path}: the file is empty; copy it again")
    if not columns.is_columns(head):
        raise DataError(f"{path}: is named {ending}, but begins with {head!r}, as no such file does; look what it is")
    if head.startswith(columns.FEATHER):
        raise DataError(f"{path}: is Feather of the first version; write it again with pyarrow, as Parquet or Arrow")
