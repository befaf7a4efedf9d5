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
from hanlin.data.convert import MadeRow
from hanlin.models.common.raw_rows import field, make_rows

_BLANK = re.compile(r"#idiom\d+#")
_NUM_CANDIDATES = 10


def read_choices(path: Path) -> Iterator[MadeRow]:
    """Questions for tuning; score them by likelihood.

    Raises: DataError for a file of answers that cannot be read.
    """
    answers = _answers(path)
    return make_rows(path, lambda row: choice_records(row, answers))


def read_passages(path: Path) -> Iterator[MadeRow]:
    """Passages to compare without tuning.

    Raises: as `read_choices`.
    """
    answers = _answers(path)
    return make_rows(path, lambda row: passage_records(row, answers))


def choice_records(row: Mapping[str, Any], answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One question for each blank of a row; the other blanks are left out.

    Raises: DataError.
    """
    idioms, records = _candidates(row), []
    listed = [piece for number, idiom in enumerate(idioms) for piece in (f"选项{number}:", idiom, {"token": "<sep>"})]
    for before, after, right in _blanks(row, answers, len(idioms)):
        passage = ["上下文:", before, {"token": "<mask>"}, after, {"token": "<eod>"}]
        prompt = [*passage, *listed, {"token": "<mask>"}, "答案是:"]
        options = [_digit(number) for number in range(len(idioms))]
        records.append({"prompt": prompt, "answer": options[right], "options": options, "ends": False})
    return records


def passage_records(row: Mapping[str, Any], answers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One comparison for each blank: the passage with each idiom in it.

    Raises: DataError.
    """
    idioms = _candidates(row)
    return [
        {"options": {idiom: {"text": f"{before}{idiom}{after}"} for idiom in idioms}, "label": idioms[right]}
        for before, after, right in _blanks(row, answers, len(idioms))
    ]


def _digit(number: int) -> list[dict[str, str]]:
    # The digit as it stands after a word, which is a piece of its own.
    return [{"token": f"\u2581{number}"}]


def _blanks(row: Mapping[str, Any], answers: Mapping[str, Any], num_idioms: int) -> Iterator[tuple[str, str, int]]:
    """What stands before and after each blank, and the number of the right idiom."""
    for passage in field(dict(row), "content", list):
        if not isinstance(passage, str):
            raise DataError(f'"content": expected a list of texts, found {passage!r:.40} in it')
        for blank in _BLANK.finditer(passage):
            right = _right(blank.group(), answers, num_idioms)
            before, after = (_BLANK.sub("", part) for part in (passage[: blank.start()], passage[blank.end() :]))
            yield before.strip(), after.strip(), right


def _candidates(row: Mapping[str, Any]) -> list[str]:
    idioms = [idiom.strip() for idiom in field(dict(row), "candidates", list) if isinstance(idiom, str)]
    if len(idioms) < len(row["candidates"]) or "" in idioms:
        raise DataError('"candidates": expected texts that are not empty')
    if len(idioms) > _NUM_CANDIDATES or len(set(idioms)) < len(idioms):
        raise DataError(f'"candidates": expected up to {_NUM_CANDIDATES} different idioms, found {len(idioms)}')
    return idioms


def _right(blank: str, answers: Mapping[str, Any], num_idioms: int) -> int:
    """The number of the idiom that belongs to a blank."""
    if blank not in answers:
        raise DataError(f"the file of answers has none for {blank}")
    number = answers[blank]
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < num_idioms:
        raise DataError(
            f"the answer to {blank} is {number!r:.40}, expected the number of a candidate, 0 to {num_idioms - 1}"
        )
    return number


def _answers(path: Path) -> dict[str, Any]:
    file = path.with_name(f"{path.stem}_answer.json")
    answers = read_json(file, DataError, holds=f"the right idioms of {path.name}")
    if not isinstance(answers, dict):
        raise DataError(f'{file}: expected an object {{"#idiom000001#": number of the candidate, ...}}')
    return answers
