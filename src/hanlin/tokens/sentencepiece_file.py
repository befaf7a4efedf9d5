"""What a sentencepiece model file holds, where the library does not tell it (sentencepiece_model.proto)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.core.errors import DataError

__all__ = ["FilePiece", "SentencePieceFile", "read_file"]

PieceKind = Literal["normal", "unknown", "control", "user-defined", "unused", "byte"]
_KINDS: tuple[PieceKind, ...] = ("normal", "unknown", "control", "user-defined", "unused", "byte")  # from 1 on
_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class FilePiece:
    """score: of a byte-pair model, the piece with the best one is made first."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True)
class SentencePieceFile:
    """The pieces in the order of their ids, and what else decides how a text is cut."""

    pieces: tuple[FilePiece, ...]
    algorithm: str
    has_charmap: bool
    adds_space_before: bool
    removes_extra_spaces: bool
    escapes_spaces: bool
    space_is_suffix: bool
    falls_back_to_bytes: bool


def read_file(model: bytes) -> SentencePieceFile:
    """Raises: DataError."""
    try:
        fields = list(_fields(model))
        rest = dict(fields)
        trainer, normalizer = dict(_fields(rest.get(2, b""))), dict(_fields(rest.get(3, b"")))
        return SentencePieceFile(
            pieces=tuple(_piece(dict(_fields(value))) for number, value in fields if number == 1),
            algorithm=_ALGORITHMS[trainer.get(3, 1)],
            has_charmap=bool(normalizer.get(2)),
            adds_space_before=bool(normalizer.get(3, 1)),
            removes_extra_spaces=bool(normalizer.get(4, 1)),
            escapes_spaces=bool(normalizer.get(5, 1)),
            space_is_suffix=bool(trainer.get(24, 0)),
            falls_back_to_bytes=bool(trainer.get(35, 0)),
        )
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error):
        raise DataError("the sentencepiece model is damaged, or of a kind that is unknown here") from None


def _piece(values: dict[int, Any]) -> FilePiece:
    return FilePiece(values[1].decode(), struct.unpack("<f", values[2])[0], _KINDS[values.get(3, 1) - 1])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number, and a whole number or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(wire) or _varint(message, at)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise IndexError(at)
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
