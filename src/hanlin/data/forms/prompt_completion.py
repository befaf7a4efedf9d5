"""A question and its answer under one of the pairs of names that such rows have: prompt/completion, query/response, ...

A content and its summary are such a pair too. Either side may be a list of messages.
"""

from __future__ import annotations

from typing import Any

from hanlin.data.forms.content import ChatMessage, Conversation, make_conversation
from hanlin.data.forms.form import Fit, Form, RawRow, is_blank, one_key, system_of, text_of, unread_keys, values_of
from hanlin.data.forms.turns import answered, is_turns, read_history, read_turns

__all__ = ["ANSWERS", "FORM", "INSTRUCTIONS", "QUESTIONS", "question_key", "read_side"]

INSTRUCTIONS = ("instruction", "指令")
QUESTIONS = ("prompt", "query", "question", "input", "source", "问题", "提问", "输入")
# In the order of the questions that they usually belong to.
ANSWERS = ("completion", "response", "answer", "output", "target", "答案", "回答", "输出")
_SUMMARY, _SUMMARISED = "summary", ("content", "text", "document", "article")


def _sides(row: RawRow) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that may stand for the question and for the answer in this row."""
    has_summary = _SUMMARY in row and not values_of(row, QUESTIONS) and not values_of(row, ANSWERS)
    return (_SUMMARISED, (_SUMMARY,)) if has_summary else (QUESTIONS, ANSWERS)


def _fits(row: RawRow) -> Fit | None:
    questions, answers = _sides(row)
    if values_of(row, INSTRUCTIONS) or not values_of(row, questions):
        return None
    return "whole" if values_of(row, answers) else "question"


def question_key(row: RawRow) -> str | None:
    """The key of a row's question.

    Raises: DataError where it may be several.
    """
    return one_key(row, _sides(row)[0], "the question")


def read_side(row: RawRow, key: str, role: Any) -> list[ChatMessage]:
    """The messages of one side: a text by `role`, or a list of messages.

    Raises: DataError.
    """
    return read_turns(row[key], key) if is_turns(row.get(key)) else [ChatMessage(role, text_of(row, key))]


def _read(row: RawRow) -> Conversation:
    question, answer = question_key(row), one_key(row, _sides(row)[1], "the answer")
    # Without a question key, data.format has said that there is one.
    messages = [*system_of(row), *read_history(row.get("history")), *read_side(row, question or QUESTIONS[0], "user")]
    if answer is not None and not is_blank(row[answer]):
        messages += read_side(row, answer, "assistant")
    return make_conversation(messages)


def _unread(row: RawRow) -> list[str]:
    questions, answers = _sides(row)
    return unread_keys(row, (*questions, *answers, "system", "history"))


def _write(row: RawRow, text: str) -> dict[str, Any]:
    questions, answers = _sides(row)
    asked = question_key(row) or questions[0]
    key = next(iter(values_of(row, answers)), answers[min(questions.index(asked), len(answers) - 1)])
    has_turns = is_turns(row.get(asked))
    return {**row, key: answered([], text) if has_turns else text}


FORM = Form(
    name="prompt_completion",
    title="prompt/completion",
    signs=lambda row: values_of(row, [*_sides(row)[0], *_sides(row)[1]]),
    fits=_fits,
    read=_read,
    unread=_unread,
    write=_write,
)
