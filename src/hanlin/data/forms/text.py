"""Plain text: {"text": ...}, all of which is learned."""

from __future__ import annotations

from hanlin.data.forms.content import PlainText
from hanlin.data.forms.form import Fit, Form, RawRow, text_of, unread_keys, values_of
from hanlin.data.forms.prompt_completion import ANSWERS, INSTRUCTIONS, QUESTIONS

_TEXT = "text"


def _fits(row: RawRow) -> Fit | None:
    others = values_of(row, (*INSTRUCTIONS, "summary", *QUESTIONS, *ANSWERS))
    return "whole" if _TEXT in row and not others else None


FORM = Form(
    name="text",
    title="plain text",
    signs=lambda row: values_of(row, (_TEXT,)),
    fits=_fits,
    read=lambda row: PlainText(text_of(row, _TEXT)),
    unread=lambda row: unread_keys(row, (_TEXT,)),
    write=lambda row, answer: {**row, "answer": answer},
)
