"""CCPM as CPM-Bee's records, key for key as the original tutorial's data_reformat.py makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.convert import MadeRow
from hanlin.models.common.ccpm import ccpm_parts
from hanlin.models.common.raw_rows import make_rows

from .tokenizer import escape

QUESTION = "这段话形容了哪句诗的意境？"


def read_ccpm(path: Path, *, answers_are_texts: bool = False) -> Iterator[MadeRow]:
    """The record of each row; answers_are_texts: see `ccpm_record`."""
    return make_rows(path, lambda row: [ccpm_record(row, answer_is_text=answers_are_texts)])


def ccpm_record(row: dict[str, Any], *, answer_is_text: bool = False) -> dict[str, Any]:
    """A record of a raw row of either form; without an answer its answer is left empty.

    answer_is_text: the text of the right choice in place of `<option_N>`: more to learn from in each row, for a small
    model.
    Raises: DataError.
    """
    text, choices, answer = ccpm_parts(row)
    if answer is not None and answer not in range(len(choices)):
        raise DataError(f"the answer is {answer}, but there are the choices 0 to {len(choices) - 1}")
    # What is "<" in the file is no mark: escaped, so that the records can be trained on.
    text, choices = escape(text), [escape(choice) for choice in choices]
    return {
        "input": text,
        "options": {f"<option_{number}>": choice for number, choice in enumerate(choices)},
        "question": QUESTION,
        "<ans>": "" if answer is None else choices[answer] if answer_is_text else f"<option_{answer}>",
    }
