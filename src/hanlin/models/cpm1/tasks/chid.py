"""ChID: passages with blanks for idioms, and ten idioms to choose from.

Raw: `train.json` and so on, lines {"content": ["...#idiom000001#..."], "candidates": [...]}; beside it
`train_answer.json`, {"#idiom000001#": number of the candidate}. For tuning, each blank becomes a question whose answer
is a digit; without tuning, passages that are compared. Golden case cpm1_finetune_data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import read_json
from hanlin.models.common.raw_rows import field, read_rows

_BLANK = re.compile(r"#idiom\d+#")
_NUM_CANDIDATES = 10


def read_choices(path: Path) -> Iterator[dict[str, Any]]:
    """Questions for tuning; score them by likelihood.

    Raises: DataError.
    """
    answers = _answers(path)
    for where, row in read_rows(path):
        yield from _named(where, choice_records, row, answers)


def read_passages(path: Path) -> Iterator[dict[str, Any]]:
    """Passages to compare without tuning.

    Raises: DataError.
    """
    answers = _answers(path)
    for where, row in read_rows(path):
        yield from _named(where, passage_records, row, answers)


def choice_records(row: Mapping[str, Any], answers: Mapping[str, int]) -> list[dict[str, Any]]:
    """One question for each blank of a row; the other blanks are left out."""
    idioms, records = _candidates(row), []
    listed = [piece for number, idiom in enumerate(idioms) for piece in (f"选项{number}:", idiom, {"token": "<sep>"})]
    for before, after, right in _blanks(row, answers):
        passage = ["上下文:", before, {"token": "<mask>"}, after, {"token": "<eod>"}]
        prompt = [*passage, *listed, {"token": "<mask>"}, "答案是:"]
        options = [_digit(number) for number in range(len(idioms))]
        records.append({"prompt": prompt, "answer": options[right], "options": options, "ends": False})
    return records


def passage_records(row: Mapping[str, Any], answers: Mapping[str, int]) -> list[dict[str, Any]]:
    """One comparison for each blank: the passage with each idiom in it."""
    idioms = _candidates(row)
    return [
        {"options": {idiom: {"text": f"{before}{idiom}{after}"} for idiom in idioms}, "label": idioms[right]}
        for before, after, right in _blanks(row, answers)
    ]


def _digit(number: int) -> list[dict[str, str]]:
    # The digit as it stands after a word, which is a piece of its own.
    return [{"token": f"\u2581{number}"}]


def _blanks(row: Mapping[str, Any], answers: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    """What stands before and after each blank, and the number of the right idiom."""
    for passage in field(dict(row), "content", list):
        for blank in _BLANK.finditer(passage):
            if blank.group() not in answers:
                raise DataError(f"the file of answers has none for {blank.group()}")
            before, after = (_BLANK.sub("", part) for part in (passage[: blank.start()], passage[blank.end() :]))
            yield before.strip(), after.strip(), int(answers[blank.group()])


def _candidates(row: Mapping[str, Any]) -> list[str]:
    idioms = [str(idiom).strip() for idiom in field(dict(row), "candidates", list)]
    if len(idioms) > _NUM_CANDIDATES or len(set(idioms)) < len(idioms):
        raise DataError(f'"candidates": expected up to {_NUM_CANDIDATES} different idioms, found {len(idioms)}')
    return idioms


def _answers(path: Path) -> dict[str, int]:
    return read_json(path.with_name(f"{path.stem}_answer.json"), DataError, holds=f"the right idioms of {path.name}")


def _named(where: str, make: Any, row: Any, answers: Any) -> list[dict[str, Any]]:
    try:
        return make(row, answers)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
