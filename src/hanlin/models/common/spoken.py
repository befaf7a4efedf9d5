"""Dialogues for families that know a question and its answer alone: earlier turns become part of the question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hanlin.core.errors import DataError
from hanlin.data.forms.content import Content, Conversation, PlainText, Preference

__all__ = ["answer_text", "map_texts", "question_record", "question_text", "refuse_preference", "system_text"]

USER_SAYS, ASSISTANT_SAYS = "用户：", "AI："
"""What stands before each turn of a dialogue of several."""


def system_text(dialogue: Conversation) -> str:
    """What the system says; nothing where it says nothing."""
    first = dialogue.messages[0]
    return first.text if first.role == "system" else ""


def question_text(dialogue: Conversation, between: str = "\n") -> str:
    """What is asked, without the system's words: the only question as it is; of a longer dialogue all turns, each
    behind the name of its side, up to where the answer begins.

    between: what ends a turn.
    Raises: DataError for tools.
    """
    _refuse_tools(dialogue)
    turns = [message for message in dialogue.question.messages if message.role != "system"]
    if len(turns) == 1:
        return turns[0].text
    names = {"user": USER_SAYS, "assistant": ASSISTANT_SAYS}
    said = "".join(f"{names[turn.role]}{turn.text}{between}" for turn in turns)
    return f"{said}{ASSISTANT_SAYS}"


def answer_text(dialogue: Conversation) -> str | None:
    """The last answer; None for a dialogue that waits for one.

    Raises: DataError for one that is not to be learned.
    """
    if not dialogue.is_answered:
        return None
    _refuse_tools(dialogue)
    [answer] = dialogue.answer
    if not answer.is_learned:
        raise DataError("the last answer has the weight 0, and of a dialogue this family learns the last answer alone")
    return answer.text


def question_record(dialogue: Conversation, question_column: str, answer_column: str) -> dict[str, str]:
    """A record of two columns; what the system says stands before the question, in a line of its own.

    Raises: DataError.
    """
    before, answer = system_text(dialogue), answer_text(dialogue)
    asked = question_text(dialogue)
    record = {question_column: f"{before}\n{asked}" if before else asked}
    return record if answer is None else {**record, answer_column: answer}


def map_texts(dialogue: Conversation, change: Callable[[str], str]) -> Conversation:
    """The dialogue with every text changed."""
    return replace(dialogue, messages=tuple(replace(one, text=change(one.text)) for one in dialogue.messages))


def refuse_preference(content: Content) -> Conversation | PlainText:
    """A content that can become a record.

    Raises: DataError.
    """
    if isinstance(content, Preference):
        raise DataError("two answers, one of them preferred: no record holds both")
    return content


def _refuse_tools(dialogue: Conversation) -> None:
    if dialogue.tools or any(message.calls or message.role == "tool" for message in dialogue.messages):
        raise DataError("tools and their calls have no place in this family's records; leave such rows out")
