"""Dialogues -> the ids of a prompt: ChatGLM2's numbered rounds, the roles of ChatGLM3 and of GLM-4, a plain text, or a
user's own form.

A template turns a `Dialogue` (earlier messages and the newest question) into the parts of a prompt, and an answer into
parts: ids, and texts that are encoded later, many at once. It knows nothing of lengths: `processor.py` drops the oldest
messages and asks again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from string import Formatter
from typing import Any, Protocol

from hanlin.core.errors import ConfigError, DataError
from hanlin.core.json_text import parse_json

from .tokenizer import ROLES, ChatGlm2Tokenizer, TextOrId

ROUNDS = "[Round {round}]\n\n问：{question}\n\n答："
PLAIN = "{question}"
NAMED = ("rounds", "roles", "plain")
USER, ASSISTANT, SYSTEM, OBSERVATION = "user", "assistant", "system", "observation"
_MESSAGE_KEYS = ("role", "content", "metadata", "tools")
# GLM-4's own words for its tools.
GLM4_SYSTEM = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
GLM4_FUNCTION = "\n\n## {name}\n\n{text}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
GAP = "\n\n"
"""Between an answer and the next round."""
SYSTEM_GAP = "\n"
"""Between what the system says and the first question, where they are joined."""


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

    def answer(self, tokenizer: ChatGlm2Tokenizer, turn: Sequence[Message]) -> list[TextOrId]:
        """An answer without its end; turn: all that the assistant says before somebody else does.

        Raises: DataError.
        """
        ...

    def end(self, tokenizer: ChatGlm2Tokenizer, turn: Sequence[Message]) -> int:
        """The id that is learned behind an answer."""
        ...

    def read_answer(self, text: str) -> str:
        """The answer that a model's text holds."""
        ...

    def ends(self, tokenizer: ChatGlm2Tokenizer) -> tuple[int, ...]:
        """Ids that end an answer, besides the model's own."""
        ...


def make_template(name: str, generation: str, before: str = "", *, joins_system: bool = False) -> Template:
    """A template by name (auto: the model's own), or a user's own text with {question}, {round}, {any column}.

    before: a text put before every prompt; joins_system: what the system says is put in front of the first question.
    Raises: ConfigError.
    """
    if name == "auto":
        name = {"chatglm3": "roles", "glm4": "roles", "codegeex2": "plain"}.get(generation, "rounds")
    if name != "roles":
        return TextTemplate({"rounds": ROUNDS, "plain": PLAIN}.get(name, name), before, joins_system)
    if before:
        raise ConfigError(
            f"a text before every prompt ({before!r}) has no place in the template roles; use a system message"
        )
    if joins_system:
        raise ConfigError("system first_question: the template roles has a place for what the system says; remove it")
    return RoleTemplate(is_glm4=generation == "glm4")


@dataclass(frozen=True)
class TextTemplate:
    """Every round is one piece of text, earlier ones followed by their answers; `{{` and `}}` stand for braces.

    joins_system: the first question begins with what the system says, in a line of its own; else that is refused.
    """

    form: str
    before: str = ""
    joins_system: bool = False

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
        messages = _join_system(dialogue.messages) if self.joins_system else dialogue.messages
        for message in messages:
            _refuse_roles(message)
        *earlier, newest = messages
        text = self.before
        for number, (question, answer) in enumerate(_pairs(earlier), start=1):
            text += self._round(number, question, dialogue.fields) + answer + GAP
        return text + self._round(len(earlier) // 2 + 1, _spoken_by(newest, "user"), dialogue.fields)

    def prompt(self, tokenizer: ChatGlm2Tokenizer, dialogue: Dialogue) -> list[TextOrId]:
        return [*tokenizer.prefix, self.text(dialogue)]

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it names."""
        return frozenset(column for _, column in self.pieces if column is not None)

    @property
    def pieces(self) -> list[tuple[str, str | None]]:
        """The texts of a round, each with the column that follows it; None behind the last one."""
        return _cut(self.form)

    def answer(self, tokenizer: ChatGlm2Tokenizer, turn: Sequence[Message]) -> list[TextOrId]:
        [message] = turn
        _refuse_roles(message)
        return [message.content]

    def end(self, tokenizer: ChatGlm2Tokenizer, turn: Sequence[Message]) -> int:
        return tokenizer.end

    def read_answer(self, text: str) -> str:
        return text.strip()

    def ends(self, tokenizer: ChatGlm2Tokenizer) -> tuple[int, ...]:
        return ()

    def _round(self, number: int, question: str, fields: Mapping[str, Any]) -> str:
        values = {**fields, "round": number, "question": question}
        text = ""
        for literal, column in self.pieces:
            text += literal
            if column is None:
                continue
            if column not in values:
                raise DataError(f"the template names {{{column}}}, but the record has only {', '.join(fields)}")
            text += str(values[column])
        return text


@dataclass(frozen=True)
class RoleTemplate:
    """ChatGLM3's form: a role's token, its metadata and a newline, the content; each encoded on its own.

    is_glm4: GLM-4's, which lists its tools in words of its own, before what the system message says.
    """

    is_glm4: bool = False

    def prompt(self, tokenizer: ChatGlm2Tokenizer, dialogue: Dialogue) -> list[TextOrId]:
        parts: list[TextOrId] = list(tokenizer.prefix)
        for message in dialogue.messages:
            for role, metadata, content in self._spoken(message):
                parts += [tokenizer.role(role), f"{metadata}\n", content]
        return [*parts, tokenizer.role(ASSISTANT)]

    def answer(self, tokenizer: ChatGlm2Tokenizer, turn: Sequence[Message]) -> list[TextOrId]:
        parts: list[TextOrId] = []
        for message in turn:
            parts += [tokenizer.role(ASSISTANT), f"{message.metadata}\n", message.content]
        return parts[1:]  # the role stands at the end of the prompt

    def end(self, tokenizer: ChatGlm2Tokenizer, turn: Sequence[Message]) -> int:
        """Behind the call of a tool the model waits for what the tool says."""
        return tokenizer.role(OBSERVATION) if turn[-1].metadata else tokenizer.end

    def read_answer(self, text: str) -> str:
        metadata, content = split_metadata(text)
        return text.strip() if metadata else content

    def ends(self, tokenizer: ChatGlm2Tokenizer) -> tuple[int, ...]:
        return tokenizer.role(USER), tokenizer.role(OBSERVATION)

    def _spoken(self, message: Message) -> list[tuple[str, str, str]]:
        """A message as role, metadata and content; with tools it may be two."""
        if message.tools is None:
            return [(message.role, message.metadata, message.content)]
        if not self.is_glm4:
            tools = json.dumps(message.tools, indent=4, ensure_ascii=False)
            return [(message.role, message.metadata, f"{message.content}\n{tools}")]
        tools = message.tools if isinstance(message.tools, list) else [message.tools]
        listed = (message.role, "", GLM4_SYSTEM + "".join(map(_glm4_function, tools)))
        return [listed, *([(message.role, "", message.content)] if message.content else [])]


def read_history(history: Any) -> tuple[Message, ...]:
    """The messages of a history column: a list of [question, answer] pairs, or of {"role", "content"} objects.

    Raises: DataError naming the item.
    """
    if history in (None, ""):  # as the original's scripts take it
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
        raise DataError(f"found the role {message.role!r} instead of {role!r}; questions and answers come in turns")
    return message.content


def _join_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with what the system says in the first question, as most users of ChatGLM2 write it."""
    if len(messages) < 2 or messages[0].role != SYSTEM or messages[0].tools is not None or messages[1].role != USER:
        return messages
    system, asked, *others = messages
    text = f"{system.content}{SYSTEM_GAP}{asked.content}" if system.content.strip() else asked.content
    return (replace(asked, content=text), *others)


def _refuse_roles(message: Message) -> None:
    """Raises: DataError for what has a place in the template roles alone."""
    if message.role not in (USER, ASSISTANT):
        advice = "leave it out"
        if message.role == SYSTEM:
            advice = "put its text in front of the first question with data.options.system: first_question"
        raise DataError(
            f"a message of the role {message.role!r} has no place in this template, which has questions and answers "
            f"alone (ChatGLM3 and GLM-4 have others); {advice}"
        )
    if message.metadata or message.tools is not None:
        raise DataError("metadata and tools of a message have a place in the template roles (ChatGLM3, GLM-4) alone")


def _glm4_function(tool: Any) -> str:
    """What GLM-4's system message says of one tool.

    Raises: DataError.
    """
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else tool
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f'tools: expected {{"type": "function", "function": {{"name": ...}}}}, found {tool!r:.60}; what GLM-4 '
            "says of its other tools is written into the system message"
        )
    return GLM4_FUNCTION.format(name=function["name"], text=json.dumps(function, indent=4, ensure_ascii=False))


def read_tools(value: Any) -> Any:
    """The descriptions of tools, which may be written as JSON in a string; None where there are none.

    Raises: DataError.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError as error:
            raise DataError(f"tools: a string that is no JSON ({error}); write a list of descriptions") from None
    if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list | dict):
        raise DataError(f"tools: expected a list of descriptions, found {_kind(value)}")
    return value


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
    if unread := [key for key, value in item.items() if key not in _MESSAGE_KEYS and value not in (None, "", [], {})]:
        raise DataError(
            f'item {number}: nothing reads "{unread[0]}" of a message (only {", ".join(_MESSAGE_KEYS)}); a call of a '
            'tool is written {"role": "assistant", "metadata": "its name", "content": "its arguments"}'
        )
    tools = read_tools(item.get("tools"))
    if tools is not None and role != SYSTEM:
        raise DataError(f"item {number}: tools stand in a system message, found them with the role {role!r}")
    return Message(role, content, metadata, tools)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
