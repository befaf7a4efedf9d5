"""Preference rows: two answers to one question, "chosen" and "rejected", as texts or as lists of messages."""

from __future__ import annotations

from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.forms.content import ChatMessage, Conversation, Preference, make_conversation
from hanlin.data.forms.form import Fit, Form, RawRow, one_key, read_tools, system_of, text_of, unread_keys, values_of
from hanlin.data.forms.prompt_completion import INSTRUCTIONS, QUESTIONS
from hanlin.data.forms.turns import is_turns, read_history, read_turns

_CHOSEN, _REJECTED = "chosen", "rejected"
_DIALOGUES = ("conversations", "messages")
_ASKED = (*INSTRUCTIONS, *QUESTIONS)


def _fits(row: RawRow) -> Fit | None:
    return "whole" if _CHOSEN in row and _REJECTED in row else None


def _read(row: RawRow) -> Preference:
    """Raises: DataError."""
    asked = [*system_of(row), *read_history(row.get("history")), *_question(row)]
    chosen, rejected = (_with_answer(row, key, asked) for key in (_CHOSEN, _REJECTED))
    if chosen.question.messages != rejected.question.messages:
        raise DataError(
            f'"{_CHOSEN}" and "{_REJECTED}" answer different questions; they must differ in the last turn alone'
        )
    if chosen.answer == rejected.answer:
        raise DataError(f'"{_CHOSEN}" and "{_REJECTED}" are the same answer, and nothing is preferred')
    return Preference(chosen, rejected)


def _question(row: RawRow) -> list[ChatMessage]:
    if key := one_key(row, _DIALOGUES, "the dialogue"):
        return read_turns(row[key], key)
    if key := one_key(row, INSTRUCTIONS, "the instruction"):
        given = text_of(row, "input" if "input" in row else "输入", may_be_empty=True)
        asked = text_of(row, key)
        return [ChatMessage("user", f"{asked}\n{given}" if given.strip() else asked)]
    key = one_key(row, QUESTIONS, "the question")
    if key is None:
        return []  # it stands in both dialogues
    return read_turns(row[key], key) if is_turns(row[key]) else [ChatMessage("user", text_of(row, key))]


def _with_answer(row: RawRow, key: str, asked: list[ChatMessage]) -> Conversation:
    value = row.get(key)
    if isinstance(value, dict):
        value = [value]
    answer = read_turns(value, key) if is_turns(value) else [ChatMessage("assistant", text_of(row, key))]
    # A list of messages may repeat the question.
    turns = answer if len(answer) > 1 and answer[0].role != "assistant" else [*asked, *answer]
    dialogue = make_conversation(turns, read_tools(row))
    if not dialogue.is_answered:
        raise DataError(f'"{key}": its last turn is not the assistant\'s')
    return dialogue


def _write(row: RawRow, answer: str) -> dict[str, Any]:
    return {**row, "response": answer}


FORM = Form(
    name="preference",
    title="preference rows (chosen, rejected)",
    signs=lambda row: values_of(row, (*_DIALOGUES, *_ASKED, _CHOSEN, _REJECTED)),
    fits=_fits,
    read=_read,
    unread=lambda row: unread_keys(
        row, (*_DIALOGUES, *_ASKED, "input", "system", "history", "tools", _CHOSEN, _REJECTED)
    ),
    write=_write,
)
