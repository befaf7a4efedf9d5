"""Alpaca: {"instruction", "input", "output"}, with "system" and earlier rounds in "history" if there are any."""

from __future__ import annotations

from hanlin.data.forms.content import ChatMessage, Conversation, make_conversation
from hanlin.data.forms.form import Fit, Form, RawRow, is_blank, one_key, system_of, text_of, unread_keys, values_of
from hanlin.data.forms.turns import read_history

_INSTRUCTION = "instruction"
_INPUTS, _OUTPUTS = ("input", "context"), ("output", "response", "completion", "answer")
_READ = (_INSTRUCTION, *_INPUTS, *_OUTPUTS, "system", "history")


def _fits(row: RawRow) -> Fit | None:
    return "whole" if _INSTRUCTION in row else None


def _read(row: RawRow) -> Conversation:
    """What is asked is the instruction and, in the next line, its input.

    Raises: DataError.
    """
    asked = text_of(row, _INSTRUCTION)
    if (key := one_key(row, _INPUTS, "the input")) and (given := text_of(row, key, may_be_empty=True)).strip():
        asked = f"{asked}\n{given}"
    messages = [*system_of(row), *read_history(row.get("history")), ChatMessage("user", asked)]
    if (output := one_key(row, _OUTPUTS, "the answer")) and not is_blank(row[output]):
        messages.append(ChatMessage("assistant", text_of(row, output)))
    return make_conversation(messages)


def _write(row: RawRow, answer: str) -> dict:
    return {**row, (values_of(row, _OUTPUTS) or _OUTPUTS)[0]: answer}


FORM = Form(
    name="alpaca",
    title="alpaca",
    signs=lambda row: values_of(row, (_INSTRUCTION, *_INPUTS, *_OUTPUTS)),
    fits=_fits,
    read=_read,
    unread=lambda row: unread_keys(row, _READ),
    write=_write,
)
