"""Which kind of data lies at a path, and its records."""

from __future__ import annotations

from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.files import check_regular
from hanlin.data.sources.records import Records


def is_data_folder(path: Path) -> bool:
    """Whether a folder is a data set, not only a place where some lie."""
    from hanlin.data.sources.arrow import is_arrow_folder
    from hanlin.data.sources.bee import META

    return (path / META).is_file() or is_arrow_folder(path)


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
    check_regular(path, DataError)
    if path.name == META:
        return BeeSource(path.parent)
    return JsonListSource(path) if is_json_list(path) else JsonlSource(path)
