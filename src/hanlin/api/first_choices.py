"""Rows that give a text one of a few labels: how a first recipe has them read by a family whose records fill blanks.

The record of such a row has all labels as its options, so that the model chooses, and `likelihood` counts how often it
chooses rightly. Rows of other forms, and those whose options differ from row to row, are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import HanlinError
from hanlin.data.forms.detection import tell_form
from hanlin.data.processor import tried
from hanlin.data.sources import open_records
from hanlin.models.family import Blanks, FillsBlanks, Processor

if TYPE_CHECKING:
    from hanlin.recipe.settings import DataSettings

__all__ = ["settings_of_choices"]

LABELS = ("label", "labels", "category", "class", "标签", "类别", "分类")
"""Keys under which rows have one, the likeliest first."""
_ANSWER = "answer"
_NO_TEXTS = ("id", "idx", "guid", "uid")
_MOST_LABELS = 20
_LEAST_ROWS = 2
"""Of each label, on average: else they are answers rather than labels."""

Rows = Sequence[Mapping[str, Any]]


def settings_of_choices(files: Sequence[Path], data: DataSettings, processor: Processor, most: int) -> dict[str, Any]:
    """Settings by their keys; none where the rows, of which so many of each file are looked at, are not such.

    Raises: DataError for a file that cannot be read.
    """
    if not isinstance(processor, FillsBlanks) or data.transform or data.format != "auto":
        return {}
    scored = {"evaluate.tasks": ["likelihood"]}
    rows: list[Mapping[str, Any]] = []
    for file in files:
        source = open_records(file)
        looked_at = min(most, len(source))
        found = [row for number in range(looked_at) if isinstance(row := tried(source.__getitem__, number), Mapping)]
        if len(found) < looked_at:
            return {}
        rows += found
        if (form := tell_form(source, processor).form) is not None and form.name != "text" and not _options(found):
            return {}
    if rows and all(not isinstance(tried(processor.candidates, row), HanlinError) for row in rows):
        return scored
    mapping = _mapping(rows, processor.blanks)
    return {} if mapping is None else {"data.transform": mapping, **scored}


def _mapping(rows: Rows, blanks: Blanks) -> dict[str, Any] | None:
    """The record's keys from those of the rows; None where no key is the label of all of them."""
    names, options = _options(rows), blanks.options
    keys = [key for key in rows[0] if all(key in row for row in rows)] if rows else []
    of_label = (*LABELS, blanks.answer, _ANSWER) if names else LABELS
    label = next((key for key in of_label if key in keys), None)
    if label is None or (not names and any(blanks.answer in row for row in rows)):
        return None
    values = [row[label] for row in rows]
    names = names or _few(values)
    texts = [key for key in keys if key not in (label, options, *_NO_TEXTS) and _are_texts(row[key] for row in rows)]
    if not names or not {str(one) for one in values} <= set(names) or not texts:
        return None
    if any("." in key or "*" in key for key in (*texts, label)) or any(name[:1] in ("", "$") for name in names):
        return None  # a mapping would read these as something else
    record: dict[str, Any] = {"input": f"${texts[0]}"} if len(texts) == 1 else {key: f"${key}" for key in texts}
    record[options] = {blanks.option.format(number): name for number, name in enumerate(names)}
    record[blanks.answer] = f"${label}" if _are_texts(values) else {"$join": [f"${label}"]}
    return record


def _options(rows: Rows) -> list[str]:
    """The list that all rows say under "options"."""
    stated = rows[0].get("options") if rows else None
    if not isinstance(stated, list) or not _are_texts(stated) or any(row.get("options") != stated for row in rows):
        return []
    return stated


def _few(values: Sequence[Any]) -> list[str]:
    """The labels, if these are some: texts or whole numbers, each several times."""
    if not all(isinstance(one, str | int) and not isinstance(one, bool) for one in values):
        return []
    names = sorted(set(values), key=lambda one: (isinstance(one, str), one))
    is_few = 2 <= len(names) <= _MOST_LABELS and len(values) >= _LEAST_ROWS * len(names)
    return list(map(str, names)) if is_few else []


def _are_texts(values: Any) -> bool:
    return all(isinstance(one, str) for one in values)
