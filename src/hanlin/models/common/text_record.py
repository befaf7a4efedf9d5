"""Records of texts: texts, questions with answers, options; their columns, pieces and ids.

A column holds a text, or a list of pieces: a text (encoded by itself, whatever stands beside it), a number (an id), or
`{"token": "<mask>"}` (one token of the vocabulary).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from hanlin.core.batch import Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.processor import tried
from hanlin.models.common.answers import check_answer

PAD, EOD = "<pad>", "<eod>"
OPTIONS, LABEL, ENDS = "options", "label", "ends"
"""Keys of a record: what may be chosen from, which of them is right, whether an <eod> follows."""


class Vocabulary(Protocol):
    """What is asked of a tokenizer to read a record's columns."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def find(self, token: str) -> int | None: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class EncodesMany(Vocabulary, Protocol):
    """A tokenizer that encodes many texts faster than one by one."""

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]: ...


class EncodedAhead:
    """A tokenizer that has encoded the texts in some columns of records already, all at once, which is faster."""

    def __init__(self, tokenizer: EncodesMany, records: Iterable[Any], columns: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        distinct = list(dict.fromkeys(_texts_of(records, columns)))
        ids = tried(tokenizer.encode_many, distinct)
        # One text that cannot be encoded spoils them all: then each is encoded when it is asked for.
        self._known = {} if isinstance(ids, DataError) else dict(zip(distinct, ids, strict=True))

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        ids = self._known.get(text)
        return self._tokenizer.encode(text) if ids is None else ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def find(self, token: str) -> int | None:
        return self._tokenizer.find(token)


class ReadsColumns(Protocol):
    """What of a processor of texts `process_ahead` uses."""

    tokenizer: Vocabulary

    def check(self, record: Any) -> None: ...

    def sample(self, record: Any) -> Sample: ...


def process_ahead(
    processor: ReadsColumns, tokenizer: EncodesMany, records: Sequence[Any], columns: Sequence[str]
) -> list[Sample | DataError]:
    """A processor's sample of each record, their texts encoded at once; of one that cannot be used, its error."""
    ahead = copy.copy(processor)
    ahead.tokenizer = EncodedAhead(tokenizer, records, columns)
    return [tried(_checked_sample, ahead, record) for record in records]


def _checked_sample(processor: ReadsColumns, record: Any) -> Sample:
    if isinstance(record, Mapping) and OPTIONS in record:
        processor.check(record)
    return processor.sample(record)


def _texts_of(records: Iterable[Any], columns: Sequence[str]) -> Iterator[str]:
    for record in records:
        values = [record.get(column) for column in columns] if isinstance(record, Mapping) else []
        for value in values:
            yield from (piece for piece in (value if isinstance(value, list) else [value]) if isinstance(piece, str))


def end_name(tokenizer: Vocabulary) -> str:
    """<eod>; of a GPT-2 vocabulary, <|endoftext|>.

    Raises: ConfigError.
    """
    for token in (EOD, "<|endoftext|>"):
        if tokenizer.find(token) is not None:
            return token
    raise ConfigError(f"model.vocab: the vocabulary lacks {EOD}, with which documents end; take one that has it")


def end_id(tokenizer: Vocabulary) -> int:
    """The id of `end_name`.

    Raises: ConfigError.
    """
    id = tokenizer.find(end_name(tokenizer))
    assert id is not None, "it has just been found"
    return id


def pad_id(tokenizer: Vocabulary) -> int:
    """The id of <pad>; which one it is has no effect, so <eod> where there is none."""
    id = tokenizer.find(PAD)
    return end_id(tokenizer) if id is None else id


def check_vocabulary(tokenizer: Vocabulary, vocab_size: int) -> None:
    """Whether the model has a row for every id.

    Raises: ConfigError.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"the vocabulary has {tokenizer.vocab_size} tokens, the model only {vocab_size} (vocab_size); take the "
            "vocabulary that belongs to the model, or set model.config.vocab_size for a fresh one"
        )


def check_max_length(max_length: int, num_positions: int) -> None:
    """Whether the model has a position for every token of a row.

    Raises: ConfigError.
    """
    if max_length > num_positions:
        raise ConfigError(
            f"data.max_length is {max_length}, the model has only {num_positions} positions; lower it, or set "
            "model.config.max_length for a fresh model"
        )


def check_column_names(options: Any, names: Iterable[str]) -> None:
    """Whether each of these options names a column.

    Raises: ConfigError.
    """
    for name in names:
        if not getattr(options, name):
            raise ConfigError(f"{name} is empty; leave it out to get the default")


def names_columns(options: Any) -> bool:
    """Whether the options name columns other than the default ones, so that every row is to have these."""
    named = [field for field in fields(options) if field.name.endswith("_column")]
    return any(getattr(options, field.name) != field.default for field in named)


def unread_columns(record: Any, known: Iterable[str]) -> list[str]:
    """What is to be said of a record of whose columns nothing reads some; known: those that are read."""
    read = set(known)
    return [f'column "{name}" is not read' for name in record if name not in read]


def read_column(record: Any, column: str, tokenizer: Vocabulary, *, may_be_empty: bool = False) -> list[int]:
    """The ids of a column.

    Raises: DataError naming the column.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object, found {record!r:.40}")
    if column not in record:
        raise DataError(
            f'no column "{column}" (the row has: {", ".join(map(str, record)) or "none"}); data.transform renames them'
        )
    try:
        ids = ids_of(record[column], tokenizer)
    except DataError as error:
        raise DataError(f'"{column}": {error}') from None
    if not ids and not may_be_empty:
        raise DataError(f'"{column}" is empty')
    return ids


def read_learned(record: Any, column: str, tokenizer: Vocabulary) -> list[int]:
    """The ids of a column that is learned, which holds more than white space.

    Raises: DataError naming the column.
    """
    ids = read_column(record, column, tokenizer, may_be_empty=True)
    check_answer(record[column] if isinstance(record[column], str) else "…" * len(ids), column)
    return ids


def ids_of(value: Any, tokenizer: Vocabulary) -> list[int]:
    """The ids of a text or of a list of pieces.

    Raises: DataError.
    """
    if isinstance(value, str):
        return tokenizer.encode(value)
    if not isinstance(value, list):
        raise DataError(f"expected a text or a list of pieces, found {value!r:.40}")
    return [id for piece in value for id in _ids_of_piece(piece, tokenizer)]


def text_of(value: Any, tokenizer: Vocabulary) -> str:
    """How a text or a list of pieces reads."""
    if isinstance(value, str):
        return value
    return "".join(
        piece if isinstance(piece, str) else tokenizer.decode(_ids_of_piece(piece, tokenizer)) for piece in value
    )


def named_options(record: Mapping[str, Any], answer_column: str, tokenizer: Vocabulary) -> dict[str, dict[str, Any]]:
    """The records that a record's options stand for, by their names.

    A list holds answers in place of the record's own; an object holds whole records by their labels.
    Raises: DataError.
    """
    options = record.get(OPTIONS)
    if isinstance(options, Mapping) and options:
        if odd := [label for label, option in options.items() if not isinstance(option, Mapping)]:
            raise DataError(f'"{OPTIONS}": expected a record under {odd[0]!r:.40}, found {options[odd[0]]!r:.40}')
        return {str(label): {**option, LABEL: str(label)} for label, option in options.items()}
    if isinstance(options, list) and options:
        return {_option_text(option, tokenizer): {**record, answer_column: option} for option in options}
    raise DataError(f'"{OPTIONS}": expected a list of answers, or an object of records by their labels')


def _option_text(option: Any, tokenizer: Vocabulary) -> str:
    try:
        ids_of(option, tokenizer)
    except DataError as error:
        raise DataError(f'"{OPTIONS}": {error}') from None
    return text_of(option, tokenizer)


def check_options(record: Mapping[str, Any], answer_column: str, tokenizer: Vocabulary) -> None:
    """Whether the answer of a record that lists options is one of them; a record without either is right.

    Raises: DataError.
    """
    if not isinstance(record.get(OPTIONS), list) or answer_column not in record:
        return
    options = named_options(record, answer_column, tokenizer)
    answer = _option_text(record[answer_column], tokenizer)
    if answer not in options:
        raise DataError(f'"{answer_column}": {answer!r:.40} is none of the options {", ".join(options):.80}')


def ends_of(record: Mapping[str, Any], default: bool) -> bool:
    """Whether an <eod> follows a record's text or answer.

    Raises: DataError.
    """
    ends = record.get(ENDS, default)
    if not isinstance(ends, bool):
        raise DataError(f'"{ENDS}": expected true or false, found {ends!r:.40}')
    return ends


def _ids_of_piece(piece: Any, tokenizer: Vocabulary) -> list[int]:
    match piece:
        case str():
            return tokenizer.encode(piece)
        case int() if not isinstance(piece, bool):
            if not 0 <= piece < tokenizer.vocab_size:
                raise DataError(f"{piece} is no id, the vocabulary has {tokenizer.vocab_size}")
            return [piece]
        case {"token": str(token)} if len(piece) == 1:
            if (id := tokenizer.find(token)) is None:
                raise DataError(f"the vocabulary lacks {token!r}")
            return [id]
    raise DataError(f'expected a text, an id or {{"token": ...}}, found {piece!r:.40}')
