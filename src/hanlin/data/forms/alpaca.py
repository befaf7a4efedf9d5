"""Alpaca: {"instruction", "input", "output"}, with "system" and earlier rounds in "history" if there are any.

The columns may have their Chinese names: 指令, 输入, 输出.
"""

from __future__ import annotations

from hanlin.data.forms.content import ChatMessage, Conversation, make_conversation
from hanlin.data.forms.form import Fit, Form, RawRow, is_blank, one_key, system_of, text_of, unread_keys, values_of
from hanlin.data.forms.prompt_completion import INSTRUCTIONS
from hanlin.data.forms.turns import read_history

_INPUTS = ("input", "context", "输入")
_OUTPUTS = ("output", "response", "completion", "answer", "输出", "回答", "答案")
_READ = (*INSTRUCTIONS, *_INPUTS, *_OUTPUTS, "system", "history")


def _fits(row: RawRow) -> Fit | None:
    return "whole" if values_of(row, INSTRUCTIONS) else None


def _read(row: RawRow) -> Conversation:
    """What is asked is the instruction and, in the next line, its input.

    Raises: DataError.
    """
    asked = text_of(row, one_key(row, INSTRUCTIONS, "the instruction") or INSTRUCTIONS[0])
    if (key := one_key(row, _INPUTS, "the input")) and (given := text_of(row, key, may_be_empty=True)).strip():
        asked = f"{asked}\n{given}"
    messages = [*system_of(row), *read_history(row.get("history")), ChatMessage("user", asked)]
    if (output := one_key(row, _OUTPUTS, "the answer")) and not is_blank(row[output]):
        messages.append(ChatMessage("assistant", text_of(row, output)))
    return make_conversation(messages)


def _write(row: RawRow, answer: str) -> dict:
    usual = "输出" if "指令" in row else _OUTPUTS[0]
    return {**row, (values_of(row, _OUTPUTS) or [usual])[0]: answer}


FORM = Form(
    name="alpaca",
    title="alpaca",
    signs=lambda row: values_of(row, (*INSTRUCTIONS, *_INPUTS, *_OUTPUTS)),
    fits=_fits,
    read=_read,
    unread=lambda row: unread_keys(row, _READ),
    write=_write,
)
