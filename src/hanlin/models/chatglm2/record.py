"""The columns of a record, and how they are turned into prompts: the options of ChatGLM2's samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hanlin.core.errors import ConfigError, DataError
from hanlin.models.common.text_record import OPTIONS, check_column_names

from .templates import SYSTEM, USER, Dialogue, Message, Template, make_template, read_history, read_tools

TOOLS = "tools"
"""A column of a row, as `system` is: the descriptions of tools, or JSON of them."""

# The original's defaults of max_source_length and max_target_length, taken in compatible mode.
SOURCE_LENGTH, TARGET_LENGTH = 1024, 128


@dataclass(frozen=True)
class ChatGlm2Options:
    """What may be chosen about the samples."""

    # Key of the question in a record.
    prompt_column: str = "prompt"
    # Key of the answer in a record.
    response_column: str = "response"
    # Key of what was said before, which may be absent: [[question, answer], ...], or [{"role": ..., "content": ...},
    # ...].
    history_column: str = "history"
    # Chat template: auto (the model's own), rounds (ChatGLM2), roles (ChatGLM3), plain, or a text with {question} or
    # {any column}.
    template: str = "auto"
    # A text before every prompt (the original's source_prefix).
    source_prefix: str = ""
    # Tokens of a prompt. A longer one loses its oldest rounds, never its newest question. None: no limit but the
    # model's.
    prompt_length: int | None = None
    # Tokens of an answer. A longer one is cut, and its end is then not learned.
    answer_length: int | None = None
    # prompt_length where answers are generated and scored, as the original's evaluation has lengths of its own
    # (--max_source_length of evaluate.sh). None: prompt_length.
    eval_prompt_length: int | None = None
    # answer_length where answers are scored (the original's --val_max_target_length). None: answer_length.
    eval_answer_length: int | None = None
    # Which answers of a dialogue are learned. None: all of a row that is a dialogue (ShareGPT, messages, alpaca),
    # the response alone of our own records (prompt, response, history).
    loss_turns: Literal["last", "all"] | None = None
    # What becomes of a system message where the template has no place for one (ChatGLM2, CodeGeeX2, plain, a text of
    # one's own). refuse: a bad row; first_question: it stands in front of the first question, in a line of its own.
    system: Literal["refuse", "first_question"] = "refuse"
    # True: the original's ids and labels, cut where it cuts them (from the right, even the mark before the answer).
    compatible: bool = False
    # Only with compatible: prompt and padding count in the loss, with 0 as their label (ignore_pad_token_for_loss off).
    learn_padding: bool = False

    def __post_init__(self) -> None:
        for name, least in (("prompt_length", 3), ("answer_length", 1)):
            for key in (name, f"eval_{name}"):
                value = getattr(self, key)
                if value is not None and value < least:
                    raise ConfigError(f"{key} is {value}, expected at least {least} tokens")
        if self.eval_answer_length is not None and not self.compatible:
            raise ConfigError("eval_answer_length cuts references, with compatible: true only; leave it or set that")
        if self.learn_padding and not self.compatible:
            raise ConfigError("learn_padding has an effect only with compatible: true; leave one or set the other")
        if self.loss_turns == "all" and self.compatible:
            raise ConfigError("loss_turns all: with compatible the response alone is learned; leave one of them out")
        if self.joins_system and self.compatible:
            raise ConfigError("system first_question: with compatible no column system is read; leave one of them out")
        check_column_names(self, ("prompt_column", "response_column", "history_column", "template"))

    @property
    def joins_system(self) -> bool:
        """Whether what the system says becomes part of the first question."""
        return self.system == "first_question"

    @property
    def source_length(self) -> int:
        """Compatible mode's limit of the prompt."""
        return self.prompt_length or SOURCE_LENGTH

    @property
    def target_length(self) -> int:
        """Compatible mode's limit of the answer."""
        return self.answer_length or TARGET_LENGTH

    @property
    def asked_length(self) -> int | None:
        """The limit of a prompt whose answer is generated; None: the model's."""
        return self.eval_prompt_length or self.prompt_length

    @property
    def reference_length(self) -> int:
        """Compatible mode's limit of what an answer is compared with."""
        return self.eval_answer_length or self.target_length


def template_of(options: ChatGlm2Options, generation: str) -> Template:
    """How the options write the questions of a model.

    Raises: ConfigError.
    """
    return make_template(options.template, generation, options.source_prefix, joins_system=options.joins_system)


def read_dialogue(record: Any, options: ChatGlm2Options) -> Dialogue:
    """The dialogue up to the newest question.

    Raises: DataError naming the column.
    """
    question = read_text(record, options.prompt_column)
    try:
        earlier = read_history(record.get(options.history_column))
    except DataError as error:
        raise DataError(f'"{options.history_column}": {error}') from None
    return Dialogue((*earlier, Message(USER, question)), record)


def read_choices(record: Any) -> list[str]:
    """The answers that a record lets choose from.

    Raises: DataError.
    """
    texts = record.get(OPTIONS)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f'"{OPTIONS}" must list the answers to choose from; or take the task generate or loss')
    return texts


def check_choice(record: Any, column: str) -> None:
    """Whether the response of a record that lists options is one of them.

    Raises: DataError.
    """
    texts, answer = record.get(OPTIONS), record.get(column)
    if isinstance(texts, list) and isinstance(answer, str) and answer not in read_choices(record):
        raise DataError(
            f'"{column}": {answer!r:.40} is none of the options {", ".join(texts):.80}; where "{OPTIONS}" is something '
            "else, leave it out with data.transform"
        )


def with_system(dialogue: Dialogue) -> Dialogue:
    """The dialogue after what the columns `system` and `tools` of its row say, if there are any.

    Raises: DataError.
    """
    text, tools = dialogue.fields.get(SYSTEM), read_tools(dialogue.fields.get(TOOLS))
    if text in (None, "") and tools is None:
        return dialogue
    if not isinstance(text, str | None):
        raise DataError(f'"{SYSTEM}": expected a string, found {text!r:.40}')
    if any(message.role == SYSTEM for message in dialogue.messages):
        raise DataError(f'"{SYSTEM}" or "{TOOLS}" stands beside a system message of the history; keep one of them')
    return replace(dialogue, messages=(Message(SYSTEM, text or "", tools=tools), *dialogue.messages))


def read_text(record: Any, column: str) -> str:
    """A column that must hold a text.

    Raises: DataError.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object, found {record!r:.40}")
    if column not in record:
        raise DataError(
            f'no column "{column}" (the row has: {", ".join(map(str, record)) or "none"}); data.transform renames them'
        )
    if not isinstance(record[column], str):
        raise DataError(f'"{column}": expected a string, found {record[column]!r:.40}')
    if not record[column]:
        raise DataError(f'"{column}" is empty')
    return record[column]
