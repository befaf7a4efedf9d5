"""What a row says, whatever its form: a dialogue, a text, or two answers of which one is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hanlin.core.errors import DataError

__all__ = [
    "ChatMessage",
    "Content",
    "Conversation",
    "MultipleChoice",
    "PlainText",
    "Preference",
    "Role",
    "Side",
    "ToolCall",
    "make_conversation",
]

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """arguments: by their names, as JSON has them."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class ChatMessage:
    """What one side said; calls: of tools, by the assistant; is_learned: False for an answer that is only read."""

    role: Role
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    is_learned: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in an order that `make_conversation` has checked; tools: their descriptions, as the row has them."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Any, ...] = ()

    @property
    def is_answered(self) -> bool:
        """Whether the last turn is the assistant's; else it is a question."""
        return self.messages[-1].role == "assistant"

    @property
    def num_answers(self) -> int:
        """Turns of the assistant."""
        roles = [message.role for message in self.messages]
        return sum(role == "assistant" != before for before, role in zip([None, *roles], roles, strict=False))

    @property
    def question(self) -> Conversation:
        """The dialogue up to where the last answer begins."""
        last = max(n for n, message in enumerate(self.messages) if message.role != "assistant")
        return Conversation(self.messages[: last + 1], self.tools)

    @property
    def without_oldest_round(self) -> Conversation | None:
        """The dialogue less its first question with all that follows it; what the system says stays. None where there
        is one question alone.
        """
        asked = [number for number, message in enumerate(self.messages) if message.role == "user"]
        if len(asked) < 2:
            return None
        head = self.messages[: asked[0]]
        return Conversation((*head, *self.messages[asked[1] :]), self.tools)

    @property
    def answer(self) -> tuple[ChatMessage, ...]:
        """The last turn, if it is the assistant's: a text, calls of tools, or both."""
        return self.messages[len(self.question.messages) :]


@dataclass(frozen=True)
class PlainText:
    text: str


Side = Literal["chosen", "rejected", "unrelated"]
"""An answer that is learned from: one of the two, or that to another question."""


@dataclass(frozen=True)
class Preference:
    """Two dialogues that differ in their last turn."""

    chosen: Conversation
    rejected: Conversation

    def side(self, side: Side, other: Preference | None = None) -> Conversation:
        """The question with an answer, which alone is learned; other: whose chosen answer is the unrelated one."""
        given = {"chosen": self.chosen, "rejected": self.rejected, "unrelated": other and other.chosen}[side]
        assert given is not None, "an unrelated answer is another row's"
        read = [replace(one, is_learned=one.role != "assistant") for one in self.chosen.question.messages]
        return replace(self.chosen, messages=(*read, *given.answer))

    def is_unrelated(self, other: Preference) -> bool:
        """Whether the chosen answer of another row is neither of these two."""
        return other.chosen.answer not in (self.chosen.answer, self.rejected.answer)


Content = Conversation | PlainText | Preference


@dataclass(frozen=True)
class MultipleChoice:
    """Answers to choose from. instructions: what is asked; text: what it is asked of; one of the two may be empty."""

    instructions: str
    text: str
    options: tuple[str, ...]

    @property
    def question(self) -> Conversation:
        """The same without the options: the instructions as the system's words, unless there is nothing else."""
        asked = ChatMessage("user", self.text or self.instructions)
        return Conversation((ChatMessage("system", self.instructions), asked) if self._has_both else (asked,))

    @property
    def _has_both(self) -> bool:
        return bool(self.text.strip() and self.instructions.strip())


def make_conversation(messages: Sequence[ChatMessage], tools: Sequence[Any] = ()) -> Conversation:
    """A dialogue whose turns come in an order that can be learned or answered.

    Raises: DataError naming the message, counted from 1.
    """
    for number, message in enumerate(messages):
        before = messages[number - 1] if number else None
        if reason := _what_is_odd(message, before):
            raise DataError(f"message {number + 1}, by the {message.role}: {reason}")
    if all(message.role == "system" for message in messages):
        raise DataError("the dialogue has no question: no message by the user")
    return Conversation(tuple(messages), tuple(tools))


def _what_is_odd(message: ChatMessage, before: ChatMessage | None) -> str:
    """Why a message cannot stand behind the one before it; nothing where it can."""
    if not message.text.strip() and not message.calls and message.role != "tool":
        return "an empty turn"
    last = None if before is None else before.role
    has_called = before is not None and bool(before.calls)
    if message.role == "system":
        return "a system message stands first or nowhere" if before is not None else ""
    if message.role == "tool":
        return "" if has_called or last == "tool" else "no tool was called before it"
    if has_called and not message.calls:
        return "the answer of the tool that was called is missing before it"
    if message.role == "user":
        return "two user turns in a row; join them, or put the answer between them" if last == "user" else ""
    if last in (None, "system"):
        return "the dialogue begins with an answer; it has to begin with the user's question"
    is_second = last == "assistant" and not message.calls
    return "two assistant turns in a row; join them, or put the question between them" if is_second else ""
