"""Texts, rows and messages -> the records that a family asks with, and back: the answers as they were asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hanlin.api.generation import states_length
from hanlin.core.errors import ConfigError, DataError, PromptTooLongError
from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.data.processor import TakesForms
from hanlin.models.common.rounds import longest_that_fits
from hanlin.models.family import Converses, ScoresTexts

if TYPE_CHECKING:
    from hanlin.core.batch import Sample
    from hanlin.data.forms.detection import Reading
    from hanlin.generate.engine import Engine
    from hanlin.models.family import Processor
    from hanlin.recipe.settings import GenerateSettings

__all__ = [
    "AskedRow",
    "Messages",
    "conversation_of",
    "fitting_record",
    "next_message",
    "one_or_several",
    "question",
    "text_sample",
    "whole_record",
]

Messages = str | Sequence[Mapping[str, Any]]
"""A dialogue up to its newest question, as OpenAI's clients write it: {"role": "user", "content": "..."}; a text is one
question.
"""


@dataclass(frozen=True)
class AskedRow:
    """A record that waits for its answer. given: the text or the row that it was made of; reading: of a row."""

    record: Any
    given: Any
    reading: Reading | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its answer is a text as people read it, not as the family's own records have it."""
        return self.reading is None or self.reading.form is not None

    def answered(self, record: Any, processor: Processor) -> Any:
        """What was given with the answer that its record has by now; of a text the answer alone."""
        if self.reading is not None:
            return self.reading.answered(self.given, record)
        if isinstance(processor, TakesForms):
            return processor.answer_of(record)
        return "\n".join(text or "" for text in processor.gold(record))


def one_or_several(given: Any) -> tuple[list[Any], bool]:
    """Texts or rows as a list, and whether it was a single one.

    Raises: DataError for what is neither.
    """
    if isinstance(given, str | Mapping):
        return [given], True
    if isinstance(given, bytes | bytearray) or not isinstance(given, Iterable):
        raise DataError(f"expected a text, a row (a dict), or several of them, found {given!r:.80}")
    return list(given), False


def question(processor: Processor, given: Any) -> AskedRow:
    """Of a text, or of a row in any form that `hanlin generate` reads (docs/data.md).

    Raises: DataError; ConfigError for a family that takes no texts.
    """
    from hanlin.data.forms.detection import tell_row

    if isinstance(given, str):
        return AskedRow(_of_text(processor, given), given)
    reading = tell_row(given, processor)
    return AskedRow(_only_record(reading, given, processor), given, reading)


def whole_record(processor: Processor, row: Any) -> Any:
    """The record of a row that has its answer.

    Raises: DataError.
    """
    from hanlin.data.forms.detection import tell_row

    return _only_record(tell_row(row, processor, is_asked=False), row, processor)


def text_sample(processor: Processor, text: str) -> Sample:
    """The sample in which all of a text is to be told.

    Raises: ConfigError for a family that reads no text on its own; DataError.
    """
    if not isinstance(processor, ScoresTexts):
        raise ConfigError("models of this family score records with an answer, not bare texts")
    return processor.text_sample(text)


def fitting_record(engine: Engine, messages: Messages, options: GenerateSettings) -> tuple[Any, GenerateSettings]:
    """The record that asks for the next message, without the oldest rounds that leave no room for an answer; and the
    settings of that answer, which may be shorter where its length is not stated: half of what the model reads, or what
    the newest question leaves.

    Raises: ConfigError for a family that cannot be talked with; DataError naming the message that cannot be used, or
    when the newest question alone leaves no room.
    """
    processor = engine.processor
    if not isinstance(processor, Converses):
        raise ConfigError("models of this family cannot be talked with; use generate")
    dialogue = conversation_of(messages)
    if len(dialogue.messages) > 1 and not processor.remembers:
        raise ConfigError(
            "models of this family remember nothing of earlier messages; give one question, or use generate"
        )
    limit = None if states_length(options) else engine.max_length
    if limit is not None:
        options = options.model_copy(update={"max_new_tokens": max(1, min(options.max_new_tokens, limit // 2))})

    def fits(part: Conversation) -> bool:
        try:
            engine.prompt(_of_dialogue(processor, part), options)
        except PromptTooLongError:
            return False
        return True

    kept = longest_that_fits(dialogue, lambda part: part.without_oldest_round, fits)
    if kept is not None:
        return _of_dialogue(processor, kept), options
    newest = dialogue
    while (shorter := newest.without_oldest_round) is not None:
        newest = shorter
    record = _of_dialogue(processor, newest)
    if limit is not None and (left := limit - processor.prompt(record).length) > 0:
        options = options.model_copy(update={"max_new_tokens": left})
    engine.prompt(record, options)
    return record, options


def next_message(processor: Processor, messages: Messages, tools: Sequence[Any] = ()) -> Any:
    """The record that asks for the next message of a dialogue, all of which it holds; tools: that it may call.

    Raises: DataError naming the message that cannot be used, or what nothing reads of one.
    """
    from hanlin.data.forms.turns import unread_of_turns

    if unread := unread_of_turns(messages):
        raise DataError(f"messages: {unread[0]}; nothing is ignored here")
    if not isinstance(processor, TakesForms):
        raise DataError("this model reads records of its own form alone, no messages")
    return processor.record_of(conversation_of(messages, tools))


def conversation_of(messages: Messages, tools: Sequence[Any] = ()) -> Conversation:
    """A dialogue that waits for its next answer.

    Raises: DataError naming the message that cannot be used.
    """
    from hanlin.data.forms.messages import FORM

    if isinstance(messages, str):
        return Conversation((ChatMessage("user", messages),))
    dialogue = FORM.read({"messages": messages, **({"tools": list(tools)} if tools else {})})
    assert isinstance(dialogue, Conversation), dialogue
    if dialogue.is_answered:
        raise DataError("messages: the last one is the assistant's; it answers what somebody else says last")
    return dialogue


def _of_text(processor: Processor, text: str) -> Any:
    if isinstance(processor, Converses):
        return processor.ask(text, [])
    if isinstance(processor, TakesForms):
        return processor.record_of(Conversation((ChatMessage("user", text),)))
    raise ConfigError("models of this family take records, not texts; docs/data.md describes their form")


def _only_record(reading: Reading, row: Any, processor: Processor) -> Any:
    from hanlin.data.expand import records_in

    found = records_in([reading.record(row)], processor)
    if len(found) != 1:
        raise DataError(f"a row that holds {len(found)} records; give them one by one")
    return found[0]


def _of_dialogue(processor: Converses, dialogue: Conversation) -> Any:
    if (rounds := _rounds(dialogue)) is not None:
        return processor.ask(dialogue.messages[len(rounds) * 2].text, rounds)
    if not isinstance(processor, TakesForms):
        raise ConfigError("models of this family know questions and answers alone, no other roles and no tools")
    return processor.record_of(dialogue)


def _rounds(dialogue: Conversation) -> list[tuple[str, str]] | None:
    """The earlier questions with their answers, if there is nothing else."""
    said = dialogue.messages
    sides = [message.role for message in said]
    is_plain = sides == ["user", "assistant"] * (len(sides) // 2) + ["user"]
    if not is_plain or dialogue.tools or any(message.calls for message in said):
        return None
    texts = [message.text for message in said[:-1]]
    return list(zip(texts[::2], texts[1::2], strict=True))
