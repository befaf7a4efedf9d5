"""Vocabularies of one token a line (`vocab.txt`): read from disk, and counted on a user's own files.

When they are counted, Chinese characters stand alone, runs of other letters ("yín", "hello") are words; both are kept
by frequency, with CPM-Bee's special tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError

__all__ = ["VOCAB_FILE", "build_vocabulary", "read_vocabulary"]

VOCAB_FILE = "vocab.txt"
SPECIALS = ("<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>")
_WORD = re.compile(r"[^\W\d_\u3400-\u9fff]+|.", re.DOTALL)


def read_vocabulary(path: Path) -> tuple[Path, list[str]]:
    """The file at a path, or the one in a folder, and its lines.

    Raises: DataError.
    """
    file = Path(path) / VOCAB_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(f"there is no vocabulary at {file}; give a file with one token a line, or its folder")
    try:
        return file, file.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start}); a vocabulary has one token a line") from None


def build_vocabulary(rows: Iterable[Any], size: int, min_count: int = 1) -> list[str]:
    """Specials, then at most `size` tokens in all, the most frequent ones of all texts and keys in the rows."""
    counts: Counter[str] = Counter()
    for row in rows:
        for text in _texts(row):
            counts.update(_WORD.findall(text))
    # "\n" and " " are the specials </n> and </_>; "<" is always in, since "<<" stands for it.
    for known in ("\n", " ", "<"):
        counts.pop(known, None)
    found = [token for token, count in counts.most_common(size - len(SPECIALS) - 1) if count >= min_count]
    return [*SPECIALS, "<", *found]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    else:
        yield str(value)
