"""STC: posts and replies, as texts to go on with.

Raw: `STC.json`, {"train": [[post, reply], ...], "valid": [...]}, and `STC_test.json`, {"test": [...]}, cut into words
by blanks. The part is named after a colon: `STC.json:train`. The original takes the first tenth of train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import read_json
from hanlin.data.convert import MadeRow
from hanlin.data.processor import tried


def read_dialogues(path: Path) -> Iterator[MadeRow]:
    """path: a file that holds one part, or `FILE:PART`.

    Raises: DataError when the file has not the form, or not the part.
    """
    file, part = _part_of(path)
    parts = read_json(file, DataError, holds="parts of pairs of a post and a reply")
    if not isinstance(parts, dict) or not all(isinstance(pairs, list) for pairs in parts.values()):
        raise DataError(f'{file}: expected {{"train": [[post, reply], ...], ...}}')
    if part is None and len(parts) != 1:
        raise DataError(f"{file}: holds {', '.join(parts)}; say which, as in {file}:{next(iter(parts), 'train')}")
    name = part or next(iter(parts))
    if name not in parts:
        raise DataError(f"{file}: holds no {name!r}, but {', '.join(parts)}")
    for number, pair in enumerate(parts[name], start=1):
        yield f"{file}: {name} {number}", tried(_records, pair)


def _records(pair: Any) -> list[dict[str, Any]]:
    is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)
    if not is_pair or not all(side.strip() for side in pair):
        raise DataError(f"expected a post and a reply, found {pair!r:.40}")
    return [dialogue_record(*pair)]


def dialogue_record(post: str, reply: str) -> dict[str, Any]:
    """The text of a post and its reply, without the blanks between their words."""
    return {"text": f"对话上文:{post.replace(' ', '')} 回复:{reply.replace(' ', '')}\n"}


def _part_of(path: Path) -> tuple[Path, str | None]:
    name, colon, part = path.name.rpartition(":")
    return (path.with_name(name), part) if colon else (path, None)
