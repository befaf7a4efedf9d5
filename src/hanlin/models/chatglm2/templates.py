"""Dialogues -> the ids of a prompt: ChatGLM2's numbered rounds, ChatGLM3's roles, a plain text, or a user's own form.

A template turns a `Dialogue` (earlier messages and the newest question) into the parts of a prompt, and an answer into
parts: ids, and texts that are encoded later, many at once. It knows nothing of lengths: `processor.py` drops the oldest
messages and asks again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from string import Formatter
from typing import Any, Protocol

from hanlin.core.errors import ConfigError, DataError

from .tokenizer import ROLES, ChatGlm2Tokenizer, TextOrId

ROUNDS = "[Round {round}]\n\n问：{question}\n\n答："
PLAIN = "{question}"
NAMED = ("rounds", "roles", "plain")
GAP = "\n\n"
"""Between an answer and the next round."""


@dataclass(frozen=True)
class Message:
    """What one side said. metadata: the tool an assistant calls; tools: descriptions that a system message lists."""

    role: str
    content: str
    metadata: str = ""
    tools: Any = None


@dataclass(frozen=True)
class Dialogue:
    """The newest message waits for an answer. fields: the whole record, for templates that name its columns."""

    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)


class Template(Protocol):
    def prompt(self, tokenizer: ChatGlm2Tokenizer, dialogue: Dialogue) -> list[TextOrId]:
        """[gMASK] sop and the dialogue up to where the answer begins.

        Raises: DataError.
        """
        ...

    def answer(self, tokenizer: ChatGlm2Tokenizer, text: str) -> list[TextOrId]:
        """An answer without its end."""
        ...

    def read_answer(self, text: str) -> str:
        """The answer that a model's text holds."""
        ...

    def ends(self, tokenizer: ChatGlm2Tokenizer) -> tuple[int, ...]:
        """Ids that end an answer, besides the model's own."""
        ...


def make_template(name: str, generation: str, before: str = "") -> Template:
    """A template by name (auto: the model's own), or a user's own text with {question}, {round}, {any column}.

    before: a text put before every prompt.
    Raises: ConfigError.
    """
    if name == "auto":
        name = {"chatglm3": "roles", "glm4": "roles", "codegeex2": "plain"}.get(generation, "rounds")
    if name != "roles":
        return TextTemplate({"rounds": ROUNDS, "plain": PLAIN}.get(name, name), before)
    if before:
        raise ConfigError(
            f"a text before every prompt ({before!r}) has no place in the template roles; use a system message"
        )
    return RoleTemplate()


@dataclass(frozen=True)
class TextTemplate:
    """Every round is one piece of text, earlier ones followed by their answers; `{{` and `}}` stand for braces."""

    form: str
    before: str = ""

    def __post_init__(self) -> None:
        names = ", ".join(NAMED)
        try:
            columns = [column for _, column in _cut(self.form) if column is not None]
        except ValueError as error:
            raise ConfigError(f"template {self.form!r}: {error}; write {{{{ and }}}} for braces") from None
        if not columns:
            raise ConfigError(f"template {self.form!r} is none of {names} and names no column such as {{question}}")
        if odd := [column for column in columns if not re.fullmatch(r"\w+", column)]:
            raise ConfigError(
                f"template {self.form!r}: {{{odd[0]}}} is no column; write {{question}} or a column's name"
            )

    def text(self, dialogue: Dialogue) -> str:
        """The prompt as text.

        Raises: DataError.
        """
        *earlier, newest = dialogue.messages
        text = self.before
        for number, (question, answer) in enumerate(_pairs(earlier), start=1):
            text += self._round(number, question, dialogue.fields) + answer + GAP
        return text + self._round(len(earlier) // 2 + 1, _spoken_by(newest, "user"), dialogue.fields)

    def prompt(self, tokenizer: ChatGlm2Tokenizer, dialogue: Dialogue) -> list[TextOrId]:
        return [*tokenizer.prefix, self.text(dialogue)]

    def answer(self, tokenizer: ChatGlm2Tokenizer, text: str) -> list[TextOrId]:
        return [text]

    def read_answer(self, text: str) -> str:
        return text.strip()

    def ends(self, tokenizer: ChatGlm2Tokenizer) -> tuple[int, ...]:
        return ()

    def _round(self, number: int, question: str, fields: Mapping[str, Any]) -> str:
        values = {**fields, "round": number, "question": question}
        text = ""
        for literal, column in _cut(self.form):
            text += literal
            if column is None:
                continue
            if column not in values:
                raise DataError(f"the template names {{{column}}}, but the record has only {', '.join(fields)}")
            text += str(values[column])
        return text


@dataclass(frozen=True)
class RoleTemplate:
    """ChatGLM3's form: a role's token, its metadata and a newline, the content; each encoded on its own."""

    def prompt(self, tokenizer: ChatGlm2Tokenizer, dialogue: Dialogue) -> list[TextOrId]:
        parts: list[TextOrId] = list(tokenizer.prefix)
        for message in dialogue.messages:
            parts += self._message(tokenizer, message)
        return [*parts, tokenizer.role("assistant")]

    def answer(self, tokenizer: ChatGlm2Tokenizer, text: str) -> list[TextOrId]:
        return ["\n", text]

    def read_answer(self, text: str) -> str:
        metadata, content = split_metadata(text)
        return text.strip() if metadata else content

    def ends(self, tokenizer: ChatGlm2Tokenizer) -> tuple[int, ...]:
        return tokenizer.role("user"), tokenizer.role("observation")

    def _message(self, tokenizer: ChatGlm2Tokenizer, message: Message) -> list[TextOrId]:
        content = message.content
        if message.tools is not None:
            content += "\n" + json.dumps(message.tools, indent=4, ensure_ascii=False)
        return [tokenizer.role(message.role), f"{message.metadata}\n", content]


def read_history(history: Any) -> tuple[Message, ...]:
    """The messages of a history column: a list of [question, answer] pairs, or of {"role", "content"} objects.

    Raises: DataError naming the item.
    """
    if history is None:
        return ()
    if not isinstance(history, list):
        raise DataError(f"expected a list of [question, answer] pairs, found {_kind(history)}")
    messages: list[Message] = []
    for number, item in enumerate(history, start=1):
        messages += [_message(item, number)] if isinstance(item, dict) else _pair(item, number)
    return tuple(messages)


def drop_oldest(history: Sequence[Any]) -> list[Any] | None:
    """The history column less its oldest round; a system message stays. None when there is no round left to drop."""
    head = [item for item in history[:1] if isinstance(item, dict) and item.get("role") == "system"]
    rest = history[len(head) :]
    if not rest:
        return None
    begins = (n for n, item in enumerate(rest) if n and not (isinstance(item, dict) and item.get("role") != "user"))
    return [*head, *rest[next(begins, len(rest)) :]]


def split_metadata(text: str) -> tuple[str, str]:
    """ChatGLM3's answer -> (the tool that it calls, or "", and the content)."""
    first, newline, rest = text.partition("\n")
    return (first.strip(), rest.strip()) if newline else ("", text.strip())


@cache
def _cut(form: str) -> list[tuple[str, str | None]]:
    """Each text of a form with the column that follows it."""
    return [(literal, column) for literal, column, _, _ in Formatter().parse(form)]


def _pairs(messages: Sequence[Message]) -> list[tuple[str, str]]:
    if len(messages) % 2:
        raise DataError("this template needs questions and answers in turn, but a question has no answer")
    turns = zip(messages[::2], messages[1::2], strict=True)
    return [(_spoken_by(question, "user"), _spoken_by(answer, "assistant")) for question, answer in turns]


def _spoken_by(message: Message, role: str) -> str:
    if message.role != role:
        raise DataError(
            f"found the role {message.role!r} instead of {role!r}; only the template roles (ChatGLM3) has others"
        )
    return message.content


def _pair(item: Any, number: int) -> list[Message]:
    if not isinstance(item, list) or len(item) != 2:
        found = f"{len(item)} items" if isinstance(item, list) else _kind(item)
        raise DataError(f"item {number}: expected a [question, answer] pair, found {found}")
    for value, name in zip(item, ("question", "answer"), strict=True):
        if not isinstance(value, str):
            raise DataError(f"item {number}: expected its {name} to be a string, found {_kind(value)}")
    return [Message("user", item[0]), Message("assistant", item[1])]


def _message(item: Mapping[str, Any], number: int) -> Message:
    role, content, metadata = item.get("role"), item.get("content"), item.get("metadata") or ""
    if role not in ROLES:
        raise DataError(f"item {number}: role is {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not isinstance(metadata, str):
        raise DataError(f"item {number}: expected content (and metadata) to be strings, found {_kind(content)}")
    return Message(role, content, metadata, item.get("tools"))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
