"""Records that hold a dialogue whole: {"messages": [{"role", "content", "metadata", "weight"}, ...], "tools": [...]}.

They are made of rows of other forms (data/forms); "metadata" is the tool that an assistant calls, "weight": 0 marks an
answer that is read and not learned. A turn is all that the assistant says before somebody else does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hanlin.data.forms.content import ChatMessage, Conversation, ToolCall

from .record import TOOLS
from .templates import ASSISTANT, OBSERVATION, SYSTEM, USER, Dialogue, Message, drop_oldest, read_history, read_tools

MESSAGES, WEIGHT = "messages", "weight"
_ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": OBSERVATION}


@dataclass(frozen=True)
class Turn:
    """What stands before an answer, and the answer's messages."""

    question: Dialogue
    answer: tuple[Message, ...]
    is_learned: bool = True


def dialogue_record(dialogue: Conversation, *, is_glm4: bool) -> dict[str, Any]:
    """The record of a dialogue; is_glm4: how a call of a tool is written."""
    messages = [one for message in dialogue.messages for one in _messages_of(message, is_glm4)]
    return {MESSAGES: messages, **({TOOLS: list(dialogue.tools)} if dialogue.tools else {})}


def is_dialogue(record: Any) -> bool:
    """Whether a record holds a dialogue whole."""
    return isinstance(record, Mapping) and isinstance(record.get(MESSAGES), list)


def turns_of(record: Mapping[str, Any]) -> list[Turn]:
    """Each answer with what stands before it; none where nothing is answered.

    Raises: DataError.
    """
    messages, given = _read_messages(record), record[MESSAGES]
    weights = [1] * (len(messages) - len(given)) + [message.get(WEIGHT, 1) for message in given]
    return [
        replace(turn, is_learned=all(weights[start:end]))
        for turn, (start, end) in zip(turns_in(Dialogue(messages, record)), _answers(messages), strict=True)
    ]


def turns_in(dialogue: Dialogue) -> list[Turn]:
    """The same of any dialogue."""
    messages = dialogue.messages
    return [Turn(Dialogue(messages[:start], dialogue.fields), messages[start:end]) for start, end in _answers(messages)]


def question_of(record: Mapping[str, Any]) -> Dialogue:
    """The dialogue up to where its last answer begins, whether it is there or not.

    Raises: DataError.
    """
    messages = _read_messages(record)
    return Dialogue(messages[: _end_of_question(messages)], record)


def with_date(text: str) -> str:
    """What the original's chat makes of the words that ChatGLM2 was trained to say in place of its date."""
    return text.replace("[[训练时间]]", "2023年")


def answered(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A copy of the record with another last answer."""
    kept = record[MESSAGES][: _end_of_question([Message(one["role"], "") for one in record[MESSAGES]])]
    return {**record, MESSAGES: [*kept, {"role": ASSISTANT, "content": text}]}


def last_answer(record: Mapping[str, Any]) -> str | None:
    """The last answer as a model writes it: the tool that it calls in a line of its own. None where there is none."""
    messages = record[MESSAGES]
    said = messages[_end_of_question([Message(one["role"], "") for one in messages]) :]
    texts = [f"{one['metadata']}\n{one['content']}" if one.get("metadata") else one["content"] for one in said]
    return "\n".join(texts) if texts else None


def without_learned(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which no answer that is there is learned."""
    messages = [{**message, WEIGHT: 0} if message["role"] == ASSISTANT else message for message in record[MESSAGES]]
    return {**record, MESSAGES: messages}


def without_oldest_round(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A copy without the oldest round; what the system says stays. None where the newest round alone is left."""
    messages = record[MESSAGES]
    newest = max(number for number, message in enumerate(messages) if message["role"] == USER)
    earlier = drop_oldest(messages[:newest])
    return None if earlier is None else {**record, MESSAGES: [*earlier, *messages[newest:]]}


def _read_messages(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages; the tools belong to what the system says.

    Raises: DataError.
    """
    bare = [{key: value for key, value in message.items() if key != WEIGHT} for message in record[MESSAGES]]
    messages, tools = read_history(bare), read_tools(record.get(TOOLS))
    if tools is None:
        return messages
    if messages[0].role != SYSTEM:
        return (Message(SYSTEM, "", tools=tools), *messages)
    return (Message(SYSTEM, messages[0].content, tools=tools), *messages[1:])


def _answers(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Where the turns of the assistant begin and end."""
    starts = [
        number
        for number, message in enumerate(messages)
        if message.role == ASSISTANT and (number == 0 or messages[number - 1].role != ASSISTANT)
    ]
    ends = [
        number + 1
        for number, message in enumerate(messages)
        if message.role == ASSISTANT and (number + 1 == len(messages) or messages[number + 1].role != ASSISTANT)
    ]
    return list(zip(starts, ends, strict=True))


def _end_of_question(messages: Sequence[Message]) -> int:
    return max((number + 1 for number, message in enumerate(messages) if message.role != ASSISTANT), default=0)


def _messages_of(message: ChatMessage, is_glm4: bool) -> list[dict[str, Any]]:
    """A message as those of a record: a text and each call of a tool stand alone."""
    weight = {} if message.is_learned else {WEIGHT: 0}
    said = [{"role": _ROLES[message.role], "content": message.text, **weight}] if _says(message) else []
    calls = [
        {"role": ASSISTANT, "metadata": call.name, "content": _arguments(call, is_glm4), **weight}
        for call in message.calls
    ]
    return [*said, *calls]


def _says(message: ChatMessage) -> bool:
    return bool(message.text.strip()) or not message.calls


def _arguments(call: ToolCall, is_glm4: bool) -> str:
    """What a tool is called with, as the model writes it: JSON, or (ChatGLM3) a call in Python."""
    if isinstance(call.arguments, str):
        return call.arguments
    if is_glm4:
        return json.dumps(call.arguments, ensure_ascii=False)
    named = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"```python\ntool_call({named})\n```"
