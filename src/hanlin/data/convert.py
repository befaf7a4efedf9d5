"""Files of one form into another: raw CCPM rows to CPM-Bee records, JSON lines to the binary form and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.sources import Records, open_records
from hanlin.data.sources.bee import write_bee
from hanlin.data.sources.jsonl import write_jsonl
from hanlin.data.sources.records import BadRowError

QUESTION = "这段话形容了哪句诗的意境？"
_RAW = re.compile(r"\[翻译\](?P<text>[^\[\]]*)(?P<choices>(?:\[\d+\][^\[\]]*)+)\[答案\]", re.DOTALL)
_CHOICE = re.compile(r"\[(\d+)\]([^\[\]]*)")


def ccpm_record(row: dict[str, Any]) -> dict[str, Any]:
    """A raw CCPM row as a CPM-Bee record, key for key as the original tutorial's data_reformat.py makes it.

    Two raw forms: {"target": "3", "input": "[翻译]text[0]a[1]b[2]c[3]d[答案]"} and
    {"translation": text, "choices": [a, b, c, d], "answer": 3}; without `answer` the answer is left empty.
    Raises: DataError.
    """
    return _ccpm(row, as_text=False)


def ccpm_text_record(row: dict[str, Any]) -> dict[str, Any]:
    """The same with the text of the right choice as the answer: more to learn from in each row, for a small model.

    Raises: DataError.
    """
    return _ccpm(row, as_text=True)


def _ccpm(row: dict[str, Any], *, as_text: bool) -> dict[str, Any]:
    text, choices, answer = ccpm_parts(row)
    if answer is not None and answer not in range(len(choices)):
        raise DataError(f"the answer is {answer}, but there are the choices 0 to {len(choices) - 1}")
    return {
        "input": text,
        "options": {f"<option_{number}>": choice for number, choice in enumerate(choices)},
        "question": QUESTION,
        "<ans>": "" if answer is None else choices[answer] if as_text else f"<option_{answer}>",
    }


def convert_file(source: Path, target: Path, change: Callable[[Any], Any] = lambda record: record) -> int:
    """Write each record of `source`, changed, to another file; returns the number of rows.

    target: a name in .jsonl or .json is JSON lines; any other `folder/name` is a new data file `name` of the binary
    data set `folder`.
    Raises: DataError naming file and line.
    """
    rows = open_records(source)
    records = _changed(rows, change)
    if target.suffix in (".jsonl", ".json"):
        return write_jsonl(target, records)
    return write_bee(target.parent, target.name, records, form="pickle").nlines


def _changed(rows: Records, change: Callable[[Any], Any]) -> Iterator[Any]:
    for row in range(len(rows)):
        record = rows[row]
        try:
            yield change(record)
        except DataError as error:
            raise BadRowError(rows.where(row), str(error)) from None


def ccpm_parts(row: dict[str, Any]) -> tuple[str, list[str], int | None]:
    """Text, choices and the number of the right one (None: not said) of a raw CCPM row of either form.

    Raises: DataError.
    """
    if "translation" in row:
        return _parts_of_fields(row)
    if "input" not in row:
        raise DataError(f"no CCPM row: expected the keys target and input, or translation and choices; found {[*row]}")
    found = _RAW.fullmatch(row["input"]) if isinstance(row["input"], str) else None
    if not found:
        raise DataError("no CCPM row: `input` must read [翻译]text[0]...[1]...[2]...[3]...[答案]")
    choices = _CHOICE.findall(found["choices"])
    if [int(number) for number, _ in choices] != list(range(len(choices))):
        raise DataError(f"the choices must be numbered 0, 1, 2, ...; found {[number for number, _ in choices]}")
    return found["text"], [choice for _, choice in choices], _whole_number(row.get("target"))


def _parts_of_fields(row: dict[str, Any]) -> tuple[str, list[str], int | None]:
    text, choices = row["translation"], row.get("choices")
    if not isinstance(text, str) or not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise DataError("no CCPM row: `translation` must be a text and `choices` a list of texts")
    return text, choices, _whole_number(row.get("answer"))


def _whole_number(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    raise DataError(f"the answer must be the number of a choice, found {value!r}")
