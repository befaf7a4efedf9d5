"""OpenAI's messages: {"messages": [{"role": "user", "content": ...}, ...]}, with "tools", calls and parts of texts."""

from __future__ import annotations

from collections.abc import Sequence

from hanlin.core.errors import DataError
from hanlin.data.forms.content import Conversation, make_conversation
from hanlin.data.forms.form import Fit, Form, RawRow, one_key, read_tools, system_of, unread_keys, values_of
from hanlin.data.forms.turns import answered, read_turns, tools_of_turns, unread_of_turns

__all__ = ["FORM", "dialogue_form"]


def dialogue_form(name: str, title: str, keys: Sequence[str]) -> Form:
    """A form whose dialogue stands as a list of turns under one of these keys."""

    def fits(row: RawRow) -> Fit | None:
        return "whole" if values_of(row, keys) else None

    def read(row: RawRow) -> Conversation:
        key = one_key(row, keys, "the dialogue")
        if key is None:
            raise DataError(f'no "{keys[0]}" (the row has: {", ".join(map(str, row)) or "none"})')
        tools = read_tools(row)
        within = tools_of_turns(row[key])
        if tools and within:
            raise DataError('"tools" stand in the row and in its system turn; keep one of them')
        return make_conversation([*system_of(row), *read_turns(row[key], key)], tools or within)

    def write(row: RawRow, answer: str) -> dict:
        key = values_of(row, keys)[0]
        return {**row, key: answered(row[key], answer)}

    def unread(row: RawRow) -> list[str]:
        turns = (row.get(key) for key in values_of(row, keys))
        known = (*keys, "system", "tools", "functions")
        return [*unread_keys(row, known), *(note for one in turns for note in unread_of_turns(one))]

    return Form(
        name=name,
        title=title,
        signs=lambda row: values_of(row, (*keys, "tools")),
        fits=fits,
        read=read,
        unread=unread,
        write=write,
    )


FORM = dialogue_form("messages", "messages (OpenAI)", ("messages",))
