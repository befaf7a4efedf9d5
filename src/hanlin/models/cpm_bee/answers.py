"""Where the answers and the options of a CPM-Bee record stand. Pure functions on dicts; no record is ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanlin.core.errors import DataError
from hanlin.models.family import Blanks

ANSWER = "<ans>"
OPTION_KEYS = ("options", "answers", "candidates", "选项")
"""The names under which a record may hold its options."""
BLANKS = Blanks(ANSWER, OPTION_KEYS[0], "<option_{}>")


def gold(record: dict[str, Any]) -> list[str | None]:
    """The texts under "<ans>", in their order; None for an answer that was not reached."""
    return _leaves(record[ANSWER])


def candidates(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One copy of the record for each of its options, with the option as the answer: its name ("<option_0>"), or its
    text where the record's own answer is the text of one.

    Raises: DataError when the record has no options or more than one answer.
    """
    options = options_of(record)
    if not options:
        keys = ", ".join(f'"{key}"' for key in OPTION_KEYS)
        raise DataError(
            f"it has no options to choose from; expected a dict under one of {keys}, "
            'such as {"<option_0>": "...", "<option_1>": "..."}'
        )
    if not isinstance(record.get(ANSWER), str):
        raise DataError('options can be compared for one answer only; expected a text under "<ans>"')
    answers = options.values() if record[ANSWER] in options.values() else options
    return [{**record, ANSWER: answer} for answer in answers]


def options_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a record, name -> text; none if it has none."""
    key = next((key for key in OPTION_KEYS if isinstance(record.get(key), dict) and record[key]), None)
    return {} if key is None else record[key]


def _leaves(value: Any) -> list[str | None]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [value]
