"""FewCLUE (whose tasks without examples are ZeroCLUE) and CLUE: a folder of JSON lines for each task.

How a task is asked stands in clue.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from hanlin.core.errors import DataError
from hanlin.data.sources.jsonl import JsonlSource
from hanlin.data.sources.records import BadRowError

from .questions import Subject, SuiteQuestion

__all__ = ["CLUES", "ClueSuite"]

_TASKS = Path(__file__).with_name("clue.yaml")
_KEY = re.compile(r"\{([\w.]+)\}")
_GAP = "____"
_ASKS_GAP = "\n横线处的成语是："


@dataclass(frozen=True)
class ClueSuite:
    """parts: names of the files that may be scored, the first by default, with the names that a part has in each of the
    archives; examples: likewise of those that are shown.
    """

    name: str
    parts: tuple[str, ...]
    examples: tuple[str, ...]

    @property
    def subjects(self) -> dict[str, dict[str, Any]]:
        return _all_tasks()[self.name]

    def read(self, folder: Path, part: str, names: Sequence[str]) -> list[Subject]:
        """Raises: DataError for files that are missing or odd."""
        places = {name: self._place(folder, name, part) for name in names}
        return [self._subject(name, place, part) for name, place in places.items()]

    def _place(self, folder: Path, name: str, part: str) -> Path:
        folders = self.subjects[name]["folders"]
        found = next((folder / one for one in folders if (folder / one / f"{part}.json").is_file()), None)
        if found is None:
            raise DataError(
                f"{folder / folders[0] / part}.json: there is no such file; give --data the folder that holds those of "
                "the tasks, another --split, or name the tasks that are there (--subjects)"
            )
        return found

    def _subject(self, name: str, place: Path, part: str) -> Subject:
        task = self.subjects[name]
        source = _rows(place / f"{part}.json")
        shown = next((path for one in self.examples if (path := place / f"{one}.json").is_file()), None)
        examples = [] if shown is None else _rows(shown)
        options = _options(task, [*source, *examples])
        made = [
            [_question(name, task, row, options, where) for where, row in rows if not _is_skipped(task, row)]
            for rows in (source, examples)
        ]
        if not made[0]:
            raise DataError(f"{place / part}.json: no row of it is a question")
        return Subject(name, name, made[0], [one for one in made[1] if one.gold is not None])


CLUES = {
    "fewclue": ClueSuite("fewclue", ("test_public", "test", "dev_few_all"), ("train_few_all", "train_0")),
    "clue": ClueSuite("clue", ("dev", "test"), ("train",)),
}


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, each with its place."""
    source = JsonlSource(path)
    try:
        return [(source.where(number), source[number]) for number in range(len(source))]
    except BadRowError as error:
        raise DataError(str(error)) from None


def _is_skipped(task: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether its authors agreed on no label."""
    return row.get(task["label"]) in task.get("skips", ())


def _options(task: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, str] | None:
    """What is told for each label; None where each row has its own."""
    options = task["options"]
    if "of_row" in options:
        return None
    if "from" not in options:
        return options
    found = sorted({str(row[options["from"]]) for _, row in rows if options["from"] in row})
    return {name: name for name in found}


def _question(
    name: str, task: Mapping[str, Any], row: Mapping[str, Any], options: Mapping[str, str] | None, where: str
) -> SuiteQuestion:
    text = _KEY.sub(lambda found: _value(row, found[1], where), task["text"])
    label = _label(task, row)
    id = str(row.get("id", row.get("idx", where.rpartition(":")[2])))
    if options is None:
        texts = row.get(task["options"]["of_row"])
        if not isinstance(texts, list) or len(texts) < 2:
            raise DataError(f'{where}: "{task["options"]["of_row"]}": expected a list of texts to choose from')
        options = {str(number): str(one) for number, one in enumerate(texts)}
    if label is not None and label not in options:
        raise DataError(
            f"{where}: {task['label']!r} is {label!r:.40}, which is no label of {name}: {', '.join(options):.80}"
        )
    if "gap" not in task:
        return SuiteQuestion(id, text, options, label)
    before, gap, after = text.partition(task["gap"])
    if not gap:
        raise DataError(f"{where}: expected {task['gap']} where a text is missing")
    asked = f"{before}{_GAP}{after}{_ASKS_GAP}"
    filled = {key: f"{option}{after}" for key, option in options.items()}
    return (
        SuiteQuestion(id, before, filled, label, asked, options) if before else SuiteQuestion(id, asked, options, label)
    )


def _label(task: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    value = row.get(task["label"])
    return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)


def _value(row: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key, with dots of an object inside; a list joined by commas.

    Raises: DataError.
    """
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, list):
        return ",".join(map(str, value))
    if not isinstance(value, str):
        raise DataError(f"{where}: no text under {key!r} (the row has: {', '.join(map(str, row)):.80})")
    return value


@cache
def _all_tasks() -> dict[str, dict[str, dict[str, Any]]]:
    return yaml.safe_load(_TASKS.read_text("utf-8"))
