"""A file of records with random access, and what a row that cannot be read looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from hanlin.core.errors import DataError


class BadRowError(DataError):
    """One row that cannot be used: `where` names file and line, `reason` says what is wrong with it."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


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


def open_records(path: Path) -> Records:
    """Open JSON lines (also gzipped), a JSON list, a folder of the original CPM-Bee binary form or of `save_to_disk`.

    Raises: DataError when there is no such file or it is no data at all.
    """
    from hanlin.data.sources.arrow import ArrowSource, is_arrow_folder
    from hanlin.data.sources.bee import META, BeeSource
    from hanlin.data.sources.json_list import JsonListSource, is_json_list
    from hanlin.data.sources.jsonl import JsonlSource

    path = Path(path).expanduser()
    if path.is_dir():
        if (path / META).is_file():
            return BeeSource(path)
        if is_arrow_folder(path):
            return ArrowSource(path)
        raise DataError(
            f"{path}: a folder without {META} and without .arrow files; give a JSONL file, a folder of the CPM-Bee "
            "binary form, or one of the datasets library's save_to_disk"
        )
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path (it is relative to where you run hanlin)")
    if path.name == META:
        return BeeSource(path.parent)
    return JsonListSource(path) if is_json_list(path) else JsonlSource(path)
