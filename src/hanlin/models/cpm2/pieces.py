"""What a template puts together, and its ids: texts, single tokens, soft prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hanlin.core.errors import DataError

from .tokenizer import Cpm2Tokenizer

START_ID = 1
"""<s>, which the decoder reads first."""


@dataclass(frozen=True)
class Mark:
    """One token of the vocabulary, such as a punctuation mark or a label word."""

    token: str


@dataclass(frozen=True)
class Prompts:
    """The soft prompts from number `first` up to, but not including, `end`; none if that is not larger."""

    first: int
    end: int


Piece = str | Mark | Prompts
"""A text is encoded by itself, whatever stands beside it."""


@dataclass(frozen=True)
class Item:
    """What one record becomes: what the encoder reads, and the answer.

    is_closed: the answer ends with <s_1>; max_length: ids of the encoder that are kept, None = all.
    """

    pieces: Sequence[Piece]
    answer: Sequence[Piece]
    is_closed: bool
    max_length: int | None = None


def ids_of(pieces: Sequence[Piece], tokenizer: Cpm2Tokenizer) -> list[int]:
    """Prompt i is -(i + 1).

    Raises: DataError for a token that the vocabulary lacks.
    """
    return [id for piece in pieces for id in _ids(piece, tokenizer)]


def source_of(item: Item, tokenizer: Cpm2Tokenizer) -> list[int]:
    """What the encoder reads."""
    return ids_of(item.pieces, tokenizer)[: item.max_length]


def target_of(item: Item, tokenizer: Cpm2Tokenizer) -> list[int]:
    """What the decoder reads and, one position later, says: <s>, <s_0>, the answer, and <s_1> if it is closed."""
    end = [tokenizer.sentinel(1)] if item.is_closed else []
    return [START_ID, tokenizer.sentinel(0), *ids_of(item.answer, tokenizer), *end]


def _ids(piece: Piece, tokenizer: Cpm2Tokenizer) -> list[int]:
    if isinstance(piece, str):
        return tokenizer.encode(piece)
    if isinstance(piece, Prompts):
        return [-(number + 1) for number in range(piece.first, piece.end)]
    id = tokenizer.find(piece.token)
    if id is None:
        raise DataError(f"the vocabulary lacks {piece.token!r}, which the template of this data set needs")
    return [id]
