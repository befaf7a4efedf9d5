"""C3: questions with options about a text.

A record: [["text", ...], [{"question": "...", "choice": ["...", ...], "answer": "..."}, ...], "id"]; of the texts only
the first is read, as in the original. The answer is a number word.
"""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.settings import PromptSettings

from ..pieces import Item, Piece, Prompts
from .choices import NUMBERS, RATIOS, between, num_choice_prompts, write_choices
from .fields import field

MAX_LENGTH = 768


def make_items(record: Any, prompts: PromptSettings | None = None) -> list[Item]:
    """Without prompts, one for each question: 问题：…选项：一、…；二、…；文章：…"""
    if not isinstance(record, list) or len(record) < 2 or not record[0] or not isinstance(record[1], list):
        raise DataError("a list of texts, questions and an id is expected")
    return [_item(record[0][0], question, prompts) for question in record[1]]


def _item(context: str, question: Any, prompts: PromptSettings | None) -> Item:
    asked, choices, answer = field(question, "question", str), field(question, "choice", list), question.get("answer")
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
