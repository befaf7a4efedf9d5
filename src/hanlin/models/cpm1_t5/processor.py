"""The T5's records -> arrays, and answers -> records; token streams and corrupted documents -> arrays.

A record is a text, spans of which are taken out, or a source with its target. A source stands for a document whose end
is wanted: the encoder reads `source <s_0>`, the decoder `<s_0> target <eod>`, as in pretraining.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, NO_SPAN, Batch, Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import Content, MultipleChoice, PlainText
from hanlin.data.pretraining.span_corruption import MIN_TOKENS, Marks, span_sample
from hanlin.data.processor import SoftPrompts
from hanlin.models.common import encoder_decoder_batch
from hanlin.models.common.decoder_batch import TextCursor
from hanlin.models.common.documents import count_positions, number_documents
from hanlin.models.common.soft_prompts import NO_PROMPTS, place_prompts
from hanlin.models.common.span_corruption import Corruption, check_spans, span_tokens
from hanlin.models.common.spoken import question_record, refuse_preference
from hanlin.models.common.text_record import (
    ENDS,
    LABEL,
    OPTIONS,
    check_column_names,
    check_max_length,
    check_options,
    check_vocabulary,
    end_id,
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
from hanlin.tokens.wordpiece import WordPiece

from .config import Cpm1T5Config


@dataclass(frozen=True)
class Cpm1T5Options:
    """What may be chosen about the samples."""

    # Key of a record's text, spans of which are taken out and learned; or a record has a source with its target.
    text_column: str = "text"
    # Key of what the encoder reads.
    source_column: str = "source"
    # Key of what the decoder learns.
    target_column: str = "target"
    # An <eod> follows every text and target, and is learned; a record may say otherwise ("ends": false).
    ends: bool = True
    # Ids that the decoder reads; what is wanted beyond them is cut off. None: as many as data.max_length.
    target_length: int | None = None
    # Share of the tokens of a text, or of a piece of the token stream, that is taken out.
    density: float = 0.15
    # Tokens of a span that is taken out, on average.
    mean_span: float = 3.0
    # In a piece of the token stream, which may hold several documents: positions begin anew after each document.
    reset_position_ids: bool = False
    # In a piece of the token stream: documents do not see each other.
    reset_attention_mask: bool = False

    @property
    def columns(self) -> tuple[str, str, str]:
        """The columns that hold texts."""
        return self.text_column, self.source_column, self.target_column

    def __post_init__(self) -> None:
        check_column_names(self, ("text_column", "source_column", "target_column"))
        check_spans(self.density, self.mean_span)
        if self.target_length is not None and self.target_length < 2:
            raise ConfigError(f"target_length is {self.target_length}, expected at least 2 tokens")


class Cpm1T5Processor:
    """`hanlin.models.family.Processor` of CPM-1's T5."""

    def __init__(self, tokenizer: WordPiece, config: Cpm1T5Config, options: Cpm1T5Options | None = None) -> None:
        """Raises: ConfigError."""
        check_vocabulary(tokenizer, config.vocab_size)
        self.tokenizer: Any = tokenizer
        self.config, self.options = config, options or Cpm1T5Options()
        self.prompts = NO_PROMPTS
        first, count = span_tokens(tokenizer)
        self.marks = Marks(first, end_id(tokenizer), pad_id(tokenizer), tokenizer.vocab_size)
        self.corruption = Corruption(self.options.density, self.options.mean_span, count)

    def with_prompts(self, prompts: SoftPrompts) -> Cpm1T5Processor:
        """The same samples with soft prompts before and behind what the encoder reads.

        Raises: ConfigError.
        """
        other = copy.copy(self)
        other.prompts = place_prompts(prompts, has_masks=True)
        return other

    @property
    def fingerprint(self) -> str:
        """What, besides the data, decides the arrays."""
        facts = f"{self.tokenizer.fingerprint} {self.config.max_length} {sorted(asdict(self.options).items())}"
        return f"{facts} {self.prompts}" if len(self.prompts) else facts

    learns_all_turns = False

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        """Whether a row is a text, or a source (whole: with its target); all are where columns are named."""
        options = self.options
        if names_columns(options) or options.text_column in row:
            return True
        return options.source_column in row and (not whole or options.target_column in row or OPTIONS in row)

    def record_of(self, content: Content) -> dict[str, Any]:
        """A text, or a source with its target; what the system says stands before the question.

        Raises: DataError.
        """
        content, options = refuse_preference(content), self.options
        if isinstance(content, PlainText):
            return {options.text_column: content.text}
        return question_record(content, options.source_column, options.target_column)

    def choice_record(self, choice: MultipleChoice) -> dict[str, Any]:
        """The record of the question, with its options as targets."""
        return {**self.record_of(choice.question), OPTIONS: list(choice.options)}

    def answer_of(self, record: Any) -> str:
        """The answer in a record."""
        return str(self.gold(record)[0] or "")

    def check(self, record: Any) -> None:
        """Whether a record can be trained on or scored.

        Raises: DataError.
        """
        if self._is_text(record):
            self._text(record)
            return
        self._sides(record)
        if OPTIONS in record:
            check_options(record, self.options.target_column, self.tokenizer)
            for option in self.candidates(record):
                self._sides(option)

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        """Encode a source with its target, or a text with spans taken out: others in each epoch.

        Raises: DataError.
        """
        if not self._is_text(record):
            context, target = self._sides(record)
            return self._prompted(np.array(context), np.array(target))
        ids = np.array(self._text(record))
        return self._prompted(*self.corruption.run(ids, len(ids), self.marks, rng))

    def _prompted(self, context: np.ndarray, target: np.ndarray) -> Sample:
        return self.pair(np.array(self.prompts.around(context.tolist())), target)

    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        """`sample` of many records, their texts encoded at once; of one that cannot be used, its error."""
        return process_ahead(self, self.tokenizer, records, self.options.columns)

    def notes(self, record: Any) -> list[str]:
        """The columns of a record that nothing reads."""
        return unread_columns(record, (*self.options.columns, OPTIONS, LABEL, ENDS))

    def varies(self, record: Any) -> bool:
        return self._is_text(record)

    def window_tokens(self, max_length: int) -> int:
        """How many ids of a token stream make a row of `max_length`, once spans are taken out.

        Raises: ConfigError.
        """
        if len(self.prompts):
            raise ConfigError("tuning.method: pieces of a token stream have no place for soft prompts; choose lora")
        check_max_length(max_length, self.config.max_length)
        return self.corruption.tokens_for(max_length)

    def window(self, tokens: np.ndarray, rng: np.random.Generator | None = None) -> Sample:
        """A piece of a token stream with spans taken out.

        tokens: int `[window_tokens]`, of one document or several.
        """
        length = self.corruption.length_of(len(tokens))
        return self.pair(*self.corruption.run(tokens, length, self.marks, rng), length=length)

    def pair(self, context: np.ndarray, target: np.ndarray, length: int | None = None) -> Sample:
        """A sample of what is read, int `[length]`, and all that is wanted.

        Spans stand as the tokens that mark them, in the context and before each span of the target, which ends with
        the next such token. length: positions that it takes of a row; None: those of its longer side.
        """
        made = span_sample(context, target, self.marks, self._target_columns(len(target) - 1, length))
        labels = np.where((made.tokens == self.marks.end) | (made.labels == self.marks.pad), IGNORED, made.labels)
        inputs = {"tokens": made.tokens, "encoder_tokens": context}
        ends = {"": made.tokens == self.marks.end, "encoder_": made.holds_end == 1}
        for side, is_end in ends.items():
            if self.options.reset_position_ids:
                inputs[f"{side}positions"] = count_positions(is_end)
            if self.options.reset_attention_mask:
                inputs[f"{side}spans"] = number_documents(is_end)
        return encoder_decoder_batch.make_sample(inputs, labels, length=length)

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Make a record short enough: a source loses its end, a text is cut or split into several.

        Raises: DataError when a target is too long, or would have to be split.
        """
        options = self.options
        target_room, max_length = max_length, max_length - len(self.prompts)
        if max_length < 1:
            raise DataError(f"{len(self.prompts)} soft prompts leave no room for a text; raise data.max_length")
        if self._is_text(record):
            step, ids = self.corruption.tokens_for(max_length), self._text(record)
            parts = [ids[start : start + step] for start in range(0, len(ids), step)]
            taken = [part for part in parts if len(part) > MIN_TOKENS][: 1 if policy == "truncate" else None]
            return [{**record, options.text_column: part, ENDS: False} for part in taken]
        if policy == "split":
            raise DataError("a source with its target cannot be split; choose data.overlong truncate or drop")
        context, target = self._sides(record)
        if len(target) - 1 > target_room:
            raise DataError(
                f"its target alone makes {len(target) - 1} tokens, and data.max_length leaves room for {target_room}; "
                "raise it, or let the target be cut (target_length)"
            )
        surplus = len(context) - max_length
        source = read_column(record, options.source_column, self.tokenizer)
        return [{**record, options.source_column: source[:-surplus]}]

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Pack samples into tensors; see `encoder_decoder_batch.collate`."""
        return encoder_decoder_batch.collate(rows, length, self._fillers)

    def batch_key(self, sample: Sample) -> None:
        """All samples leave each other's loss alone."""

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        labels = sample.labels[sample.labels != IGNORED]
        decode, read = self.tokenizer.decode, sample.inputs["encoder_tokens"]
        return [(decode(read[read >= 0].tolist()), False), (decode(labels.tolist()), True)]

    def prompt(self, record: Any) -> Prompt:
        """Encode a source whose target is wanted.

        Raises: DataError.
        """
        context = np.array(self.prompts.around(self._source(record)), np.int32)
        if len(context) > self.config.max_length:
            raise DataError(f"its source makes {len(context)} tokens, the model reads {self.config.max_length}")
        # A position of padding, which nobody sees: what has been read before the first position of the target.
        inputs = {
            "tokens": np.array([self.marks.pad]),
            "positions": np.zeros(1, np.int64),
            "spans": np.array([NO_SPAN]),
            "encoder_tokens": context,
            "encoder_positions": np.arange(len(context)),
            "encoder_spans": np.zeros(len(context), np.int64),
        }
        ends = frozenset((self.marks.end, self._unused_mark(context.tolist())))
        return Prompt(record, inputs, TextCursor(self.marks.first_span, 0, ends))

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pad sources on the right; rows that fill up the embedding are no tokens to answer with."""
        surplus = range(self.tokenizer.vocab_size, self.config.vocab_size)
        inputs = encoder_decoder_batch.pad_right([prompt.inputs for prompt in prompts], self._fillers)
        return PromptBatch(inputs, [prompt.cursor for prompt in prompts], [surplus for _ in prompts])

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        """A copy of the prompt's record with the answer in its target column."""
        return {**prompt.record, self.options.target_column: self.answer_texts(prompt, tokens)[0]}

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int], *, decode: Decode | None = None) -> list[str]:
        cursor = prompt.cursor
        assert isinstance(cursor, TextCursor), cursor
        return [(decode or self.tokenizer.decode)([token for token in tokens if token not in cursor.ends])]

    def follow_answer(self, prompt: Prompt) -> Callable[[Sequence[int]], list[str]]:
        return partial(self.answer_texts, prompt, decode=Growing(self.tokenizer.decode))

    def gold(self, record: Any) -> list[str | None]:
        target = record.get(self.options.target_column)
        return [None if target is None else text_of(target, self.tokenizer)]

    def candidates(self, record: Any) -> list[Any]:
        """The record with each of its options as the target.

        Raises: DataError.
        """
        return list(named_options(record, self.options.target_column, self.tokenizer).values())

    @property
    def _fillers(self) -> dict[str, int]:
        """What stands in the padding of each input of the model."""
        kinds = {"tokens": self.marks.pad, "positions": 0, "spans": NO_SPAN}
        return {f"{side}{kind}": filler for side in encoder_decoder_batch.SIDES for kind, filler in kinds.items()}

    def _is_text(self, record: Any) -> bool:
        return isinstance(record, Mapping) and self.options.text_column in record

    def _text(self, record: Any) -> list[int]:
        """Raises: DataError."""
        ids = self._ended(record, self.options.text_column)
        if len(ids) <= MIN_TOKENS:
            raise DataError(f"fewer than {MIN_TOKENS} tokens, too few to take spans out")
        return ids

    def _sides(self, record: Any) -> tuple[list[int], list[int]]:
        """What is read, and what is wanted with the unused mark.

        Raises: DataError.
        """
        context = self._source(record)
        wanted = self._ended(record, self.options.target_column)
        return context, [self.marks.first_span, *wanted, self._unused_mark(context)]

    def _source(self, record: Any) -> list[int]:
        """A source may mark the places of what is wanted; else it is wanted at its end."""
        ids = read_column(record, self.options.source_column, self.tokenizer)
        is_marked = self._unused_mark(ids) > self.marks.first_span
        return ids if is_marked else [*ids, self.marks.first_span]

    def _ended(self, record: Any, column: str) -> list[int]:
        ids = read_learned(record, column, self.tokenizer)
        return [*ids, self.marks.end] if ends_of(record, self.options.ends) else ids

    def _unused_mark(self, context: Sequence[int]) -> int:
        first = self.marks.first_span
        return max((id + 1 for id in context if first <= id < first + self.corruption.num_marks), default=first)

    def _target_columns(self, wanted: int, length: int | None) -> int:
        limits = (wanted, self.options.target_length, length, self.config.max_length)
        return min(limit for limit in limits if limit is not None)
