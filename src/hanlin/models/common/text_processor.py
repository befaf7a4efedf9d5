"""Texts, and prompts with answers -> arrays, and answers -> records; and pieces of a token stream -> arrays.

For decoders whose vocabulary has an <eod>. A sample reads all its ids but the last and predicts all but the first, as
the samples of CPM-1's programs do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import Content, MultipleChoice, PlainText
from hanlin.data.processor import SoftPrompts
from hanlin.models.common import decoder_batch
from hanlin.models.common.decoder_batch import TextCursor
from hanlin.models.common.documents import count_positions, number_documents
from hanlin.models.common.soft_prompts import NO_PROMPTS, place_prompts
from hanlin.models.common.spoken import question_record, refuse_preference
from hanlin.models.common.text_record import (
    ENDS,
    LABEL,
    OPTIONS,
    Vocabulary,
    check_column_names,
    check_max_length,
    check_options,
    check_vocabulary,
    end_id,
    end_name,
    ends_of,
    named_options,
    names_columns,
    pad_id,
    process_ahead,
    read_column,
    read_learned,
    text_of,
    unread_columns,
)
from hanlin.tokens.stream import Decode, Growing

PLACE = "{}"
"""Where an option goes in the instructions of a zero-shot question."""


class TextTokenizer(Vocabulary, Protocol):
    """What is asked of a tokenizer here."""

    @property
    def fingerprint(self) -> str: ...

    def encode_many(self, texts: Sequence[str], /) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int], /) -> str: ...


class TextConfig(Protocol):
    """What is asked of a model's configuration here."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_length(self) -> int: ...


@dataclass(frozen=True)
class TextOptions:
    """What may be chosen about the samples."""

    # Key of a record's text, all of which is learned; or a record has a prompt with its answer.
    text_column: str = "text"
    # Key of what stands before the answer, and is not learned.
    prompt_column: str = "prompt"
    # Key of the answer, which is learned.
    answer_column: str = "answer"
    # An <eod> follows every text and answer, and is learned; a record may say otherwise ("ends": false).
    ends: bool = True
    # Tokens of an answer. A longer one is cut, and its end is then not learned.
    answer_length: int | None = None
    # A text that is split: the last token of a part is the first of the next, so that every token is learned. False:
    # the parts share nothing, as in the fine-tuning program.
    overlap: bool = True
    # In a piece of the token stream, which may hold several documents: positions begin anew after each <eod>.
    reset_position_ids: bool = False
    # In a piece of the token stream: documents do not see each other.
    reset_attention_mask: bool = False
    # In a piece of the token stream: what follows an <eod> is not learned.
    eod_mask_loss: bool = False

    @property
    def columns(self) -> tuple[str, str, str]:
        """The columns that hold texts."""
        return self.text_column, self.prompt_column, self.answer_column

    def __post_init__(self) -> None:
        check_column_names(self, ("text_column", "prompt_column", "answer_column"))
        if self.answer_length is not None and self.answer_length < 1:
            raise ConfigError(f"answer_length is {self.answer_length}, expected at least 1 token")


class TextProcessor:
    """`hanlin.models.family.Processor` of texts, and of prompts with answers."""

    def __init__(self, tokenizer: TextTokenizer, config: TextConfig, options: TextOptions | None = None) -> None:
        """Raises: ConfigError."""
        check_vocabulary(tokenizer, config.vocab_size)
        self.tokenizer: Any = tokenizer
        self.config = config
        self.options = options or TextOptions()
        self.end = end_id(tokenizer)
        self.pad = pad_id(tokenizer)
        self.prompts = NO_PROMPTS

    def with_prompts(self, prompts: SoftPrompts) -> TextProcessor:
        """The same samples with soft prompts before each, and between prompt and answer.

        Raises: ConfigError for what only an encoder can do with them.
        """
        other = copy.copy(self)
        other.prompts = place_prompts(prompts, has_masks=False)
        return other

    @property
    def fingerprint(self) -> str:
        """What, besides the data, decides the arrays."""
        return f"{self.tokenizer.fingerprint} {sorted(asdict(self.options).items())} {self.prompts}"

    learns_all_turns = False

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        """Whether a row is a text, options, or a prompt (whole: with its answer); all are where columns are named."""
        options = self.options
        if names_columns(options) or options.text_column in row or OPTIONS in row:
            return True
        return options.prompt_column in row and (not whole or options.answer_column in row)

    def record_of(self, content: Content) -> dict[str, Any]:
        """A text, or a prompt with its answer; what the system says stands before the question.

        Raises: DataError.
        """
        content, options = refuse_preference(content), self.options
        if isinstance(content, PlainText):
            return {options.text_column: content.text}
        return question_record(content, options.prompt_column, options.answer_column)

    def choice_record(self, choice: MultipleChoice) -> dict[str, Any]:
        """The record of the question with its options as answers; where the instructions have a place for them, {}, one
        whose options are prompts, as in the zero-shot tasks of CPM-1: the text is likeliest after that of its class.
        """
        options = self.options
        if PLACE not in choice.instructions:
            return {**self.record_of(choice.question), OPTIONS: list(choice.options)}
        prompts = {name: choice.instructions.replace(PLACE, name) for name in choice.options}
        told = {options.answer_column: choice.text, ENDS: False}
        return {OPTIONS: {name: {options.prompt_column: prompt, **told} for name, prompt in prompts.items()}}

    def answer_of(self, record: Any) -> str:
        """The answer in a record."""
        return str(self.gold(record)[0] or "")

    def check(self, record: Any) -> None:
        """Whether a record can be trained on or scored.

        Raises: DataError.
        """
        self._ids(record)
        if OPTIONS in record:
            check_options(record, self.options.answer_column, self.tokenizer)
            for option in self.candidates(record):
                self._ids(option)

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        """Encode a text, or a prompt with its answer.

        Raises: DataError.
        """
        prompt, learned = self._ids(record)
        given = self.prompts.around(prompt)
        ids = np.array(given + learned, np.int32)
        labels = ids[1:].copy()
        labels[: max(len(given) - 1, 0)] = IGNORED
        return self._with_places(Sample({"tokens": ids[:-1]}, labels, (labels != IGNORED).astype(np.float32)))

    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        """`sample` of many records, their texts encoded at once; of one that cannot be used, its error."""
        return process_ahead(self, self.tokenizer, records, self.options.columns)

    def notes(self, record: Any) -> list[str]:
        """The columns of a record that nothing reads."""
        return unread_columns(record, (*self.options.columns, OPTIONS, LABEL, ENDS))

    def varies(self, record: Any) -> bool:
        return False

    def window_tokens(self, max_length: int) -> int:
        """How many ids of a token stream make a row of `max_length`.

        Raises: ConfigError.
        """
        if len(self.prompts):
            raise ConfigError("tuning.method: pieces of a token stream have no place for soft prompts; choose lora")
        check_max_length(max_length, self.config.max_length)
        return max_length + 1

    def window(self, tokens: np.ndarray, rng: np.random.Generator | None = None) -> Sample:
        """A piece of a token stream as the pretraining program makes a batch's row of it.

        tokens: int `[length + 1]`, of one document or several.
        """
        ids = tokens.astype(np.int32)
        is_end = ids[:-1] == self.end
        labels = ids[1:].copy()
        if self.options.eod_mask_loss:
            labels[is_end] = IGNORED
        sample = Sample({"tokens": ids[:-1]}, labels, (labels != IGNORED).astype(np.float32))
        return self._with_places(sample, is_end)

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Make a record short enough: a prompt loses its beginning, a text is cut or split into several.

        Raises: DataError when an answer leaves no room for its prompt, or would have to be split.
        """
        options = self.options
        max_length -= len(self.prompts)
        if max_length < 1:
            raise DataError(f"{len(self.prompts)} soft prompts leave no room for a text; raise data.max_length")
        prompt, learned = self._ids(record)
        if not prompt:
            parts = self._parts(learned, max_length)
            cut = parts[:1] if policy == "truncate" else parts
            return [{**record, options.text_column: part, ENDS: False} for part in cut]
        if policy == "split":
            raise DataError("a prompt with its answer cannot be split; choose data.overlong truncate or drop")
        keep = max_length + 1 - len(learned)
        if keep < 1:
            raise DataError(
                f"its answer alone makes {len(learned)} tokens, and data.max_length leaves room for {max_length}; "
                "raise it, or drop the row"
            )
        return [{**record, options.prompt_column: prompt[-keep:]}]

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Pack samples into tensors; see `decoder_batch.collate`."""
        return decoder_batch.collate(rows, length, self.pad)

    def batch_key(self, sample: Sample) -> None:
        """All samples leave each other's loss alone."""

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        is_text = sample.inputs["tokens"] >= 0
        tokens, labels = sample.inputs["tokens"][is_text], sample.labels[is_text]
        ids = [*tokens.tolist(), *labels[-1:][labels[-1:] != IGNORED].tolist()]
        is_learned = np.concatenate([[False], labels != IGNORED])[: len(ids)]
        bounds = [0, *(np.flatnonzero(is_learned[1:] != is_learned[:-1]) + 1).tolist(), len(ids)]
        return [(self.tokenizer.decode(ids[start:end]), bool(is_learned[start])) for start, end in pairwise(bounds)]

    def prompt(self, record: Any) -> Prompt:
        """Encode a prompt, or a text that is to go on; an empty one begins a new document.

        Its last token is the first column that the cursor feeds.
        Raises: DataError.
        """
        ids = self.prompts.around(self._given(record, self._text_or(record, self.options.prompt_column)))
        cursor = TextCursor(ids[-1], len(ids) - 1, frozenset([self.end]))
        return Prompt(record, {"tokens": np.array(ids[:-1], np.int32)}, cursor)

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pad prompts on the left; rows that fill up the embedding are no tokens to answer with."""
        surplus = range(self.tokenizer.vocab_size, self.config.vocab_size)
        return decoder_batch.collate_prompts(prompts, self.pad, surplus)

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        """A copy of the prompt's record with the answer in its answer column."""
        return {**prompt.record, self.options.answer_column: self.answer_texts(prompt, tokens)[0]}

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int], *, decode: Decode | None = None) -> list[str]:
        return [(decode or self.tokenizer.decode)([token for token in tokens if token != self.end])]

    def follow_answer(self, prompt: Prompt) -> Callable[[Sequence[int]], list[str]]:
        return partial(self.answer_texts, prompt, decode=Growing(self.tokenizer.decode))

    def gold(self, record: Any) -> list[str | None]:
        """The label where the options have labels, else the answer."""
        if LABEL in record:
            return [str(record[LABEL])]
        answer = record.get(self.options.answer_column)
        return [None if answer is None else text_of(answer, self.tokenizer)]

    def candidates(self, record: Any) -> list[Any]:
        """The records that its options stand for.

        Raises: DataError.
        """
        return list(named_options(record, self.options.answer_column, self.tokenizer).values())

    remembers = False

    def ask(self, question: str, history: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The record of the next text to go on with; the originals remember nothing of earlier ones."""
        return {self.options.prompt_column: question}

    first_token = None

    @property
    def end_token(self) -> tuple[str, int]:
        """The end of a document."""
        return end_name(self.tokenizer), self.end

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text; an empty one follows the end of the document before it."""
        return self._given({self.options.text_column: text}, self.options.text_column)

    def continuation(self, ids: Sequence[int]) -> dict[str, Any]:
        """The record of a prompt of these ids."""
        return {self.options.text_column: list(ids)}

    def text_sample(self, text: str) -> Sample:
        """All of a text, told from the end of the document before it.

        Raises: DataError.
        """
        return self.sample({self.options.prompt_column: "", self.options.answer_column: text, ENDS: False})

    def _ids(self, record: Any) -> tuple[list[int], list[int]]:
        """What is given, and what is learned; of labelled options the right one's.

        Raises: DataError.
        """
        if isinstance(record, Mapping) and isinstance(record.get(OPTIONS), Mapping):
            record = self._right_option(record)
        options = self.options
        column = self._text_or(record, options.answer_column)
        given = [] if column == options.text_column else self._given(record, options.prompt_column)
        learned = read_learned(record, column, self.tokenizer)
        if given and options.answer_length is not None and len(learned) > options.answer_length:
            learned = learned[: options.answer_length]
        elif ends_of(record, options.ends):
            learned = [*learned, self.end]
        if len(given) + len(learned) < 2:
            raise DataError("a single token, from which nothing can be learned")
        return given, learned

    def _text_or(self, record: Any, column: str) -> str:
        has_text = isinstance(record, Mapping) and self.options.text_column in record
        return self.options.text_column if has_text else column

    def _given(self, record: Any, column: str) -> list[int]:
        # In the token stream, what has nothing before it follows an <eod>.
        return read_column(record, column, self.tokenizer, may_be_empty=True) or [self.end]

    def _right_option(self, record: Mapping[str, Any]) -> dict[str, Any]:
        options = named_options(record, self.options.answer_column, self.tokenizer)
        label = str(record.get(LABEL))
        if label not in options:
            raise DataError(f'"{LABEL}": {label!r} is none of the options {", ".join(options)}')
        return options[label]

    def _parts(self, ids: list[int], max_length: int) -> list[list[int]]:
        """A text in parts of `max_length` tokens and the one after; a part of one token teaches nothing."""
        step = max_length if self.options.overlap else max_length + 1
        parts = [ids[start : start + max_length + 1] for start in range(0, len(ids), step)]
        return [part for part in parts if len(part) > 1]

    def _with_places(self, sample: Sample, is_end: np.ndarray | None = None) -> Sample:
        """The sample with what is not simply counted from 0, where the options ask for that.

        is_end: where documents end; None: it is one of its own.
        """
        ends = np.zeros(sample.length, bool) if is_end is None else is_end
        places = {}
        if self.options.reset_position_ids:
            places["positions"] = count_positions(ends)
        if self.options.reset_attention_mask:
            places["spans"] = number_documents(ends)
        return Sample({**sample.inputs, **places}, sample.labels, sample.weights)
