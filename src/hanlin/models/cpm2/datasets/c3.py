"""C3: questions with options about a text.

A row of the file: [["text", ...], [{"question": "...", "choice": ["...", ...], "answer": "..."}, ...], "id"]; of the
texts only the first is read, as in the original. A record is one of its questions with the text under "context". The
answer is a number word.
"""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.processor import SoftPrompts

from ..pieces import Item, Piece, Prompts
from .choices import NUMBERS, RATIOS, between, num_choice_prompts, write_choices
from .dataset import RawDataset, WordAnswer
from .fields import field, texts

MAX_LENGTH = 768


def records(row: Any) -> list[Any]:
    """The questions of a row of the file, or one that was taken out of it before.

    Raises: DataError.
    """
    if isinstance(row, dict):
        return [row]
    is_row = isinstance(row, list) and len(row) >= 2 and all(isinstance(part, list) for part in row[:2])
    if not is_row or not row[0]:
        raise DataError("a list of texts, questions and an id is expected")
    context, questions = row[0][0], row[1]
    # A question that is no object is a bad record, and the only one of its row.
    return [{**(one if isinstance(one, dict) else {"question": one}), "context": context} for one in questions]


def make_items(row: Any, prompts: SoftPrompts | None = None) -> list[Item]:
    """Without prompts, one for each question: 问题：…选项：一、…；二、…；文章：…"""
    return [_item(record, prompts) for record in records(row)]


def _item(record: Any, prompts: SoftPrompts | None) -> Item:
    context, asked = field(record, "context", str), field(record, "question", str)
    choices, answer = texts(record, "choice"), record.get("answer")
    if answer not in choices:
        raise DataError(f"the answer {answer!r} is none of the options")
    listed = write_choices(choices, prompts)
    if prompts is None:
        pieces: list[Piece] = ["问题：", asked, "选项：", *listed, "文章：", context]
    else:
        begin, borders = num_choice_prompts(choices), prompts.borders(RATIOS)
        middle = [*between(prompts, 1), *listed, *between(prompts, 2)]
        pieces = [Prompts(begin, borders[0]), asked, *middle, context, Prompts(borders[2], prompts.length)]
    return Item(pieces, [NUMBERS[choices.index(answer)]], is_closed=False, max_length=MAX_LENGTH)


def _options(record: Any) -> list[Any]:
    return texts(record, "choice")


DATA_SET = RawDataset(make_items, WordAnswer("answer", NUMBERS, _options), long_text="context", records=records)
