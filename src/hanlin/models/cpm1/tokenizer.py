"""CPM-1's texts <-> ids: jieba's words joined by blanks, then sentencepiece; and word pieces for the pretrained models.

Surprising: the text changes on the way ("，" becomes ","; a tab vanishes), since the sentencepiece model normalises.
Special tokens are never read out of text. `transformers.CpmTokenizer` gives other ids for nearly every text: it neither
cuts by jieba nor makes blanks visible. Golden case cpm1_tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.models.common.text_record import EOD, PAD
from hanlin.tokens.segments import cut_segments, join_segments, restore_blanks
from hanlin.tokens.sentencepiece import SentencePiece
from hanlin.tokens.vocabulary import VOCAB_FILE
from hanlin.tokens.wordpiece import WordPiece

from .byte_pairs import MERGES_FILE, BytePairTokenizer

PIECES_FILE, NAMES_FILE = "chinese_vocab.model", "vocab.json"
HUB_PIECES_FILE = "spiece.model"
"""What transformers' CpmTokenizer calls the same file."""

_WORD_START = "\u2581"  # how sentencepiece marks the beginning of a word
_UNKNOWN_SHOWN = "⁇"


class Cpm1Tokenizer:
    """The released models' tokenizer; `ids` of special tokens by `find`."""

    def __init__(self, pieces: SentencePiece) -> None:
        self.pieces = pieces

    @classmethod
    def load(cls, file: Path) -> Cpm1Tokenizer:
        """Raises: DataError."""
        tokenizer = cls(SentencePiece.load(file))
        if missing := [token for token in (PAD, EOD) if tokenizer.find(token) is None]:
            raise DataError(f"{file}: a sentencepiece model, but not one of CPM-1: it lacks {', '.join(missing)}")
        return tokenizer

    def save(self, folder: Path) -> None:
        names = {self.pieces.piece(id): id for id in range(self.vocab_size)}
        (Path(folder) / PIECES_FILE).write_bytes(self.pieces.model)
        (Path(folder) / NAMES_FILE).write_text(json.dumps(names), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return self.pieces.size

    @property
    def fingerprint(self) -> str:
        """Changes when any text would get other ids."""
        return self.pieces.fingerprint

    @property
    def unknown_id(self) -> int | None:
        return self.pieces.unknown_id

    def find(self, token: str) -> int | None:
        """The id of a token such as `<eod>`, None if there is none."""
        return self.pieces.find(token)

    def encode(self, text: str) -> list[int]:
        return self.pieces.encode(" ".join(cut_segments(text)))

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` for many texts at once."""
        return self.pieces.encode_many(join_segments(texts), threads)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; markers and ids that are no piece count as nothing, but `<eod>` is shown."""
        return "".join(self._texts[id] for id in ids if 0 <= id < self.vocab_size)

    @cached_property
    def _texts(self) -> list[str]:
        return [self._text_of(id) for id in range(self.vocab_size)]

    def _text_of(self, id: int) -> str:
        if self.pieces.piece(id) == "<unk>":
            return _UNKNOWN_SHOWN
        if self.pieces.is_silent(id):
            return ""
        # Real blanks are visible letters, so a piece's own ones only part jieba's words.
        return restore_blanks(self.pieces.piece(id).replace(_WORD_START, "").replace(" ", ""))


def load_tokenizer(path: Path) -> Cpm1Tokenizer | WordPiece | BytePairTokenizer:
    """The tokenizer of a file or a folder: sentencepiece where there is a `.model`, byte pairs where `merges.txt` lies
    beside a `vocab.json`, else word pieces.

    Raises: DataError.
    """
    path = Path(path)
    file = _vocabulary_file(path) if path.is_dir() else path
    if file.suffix == ".model":
        return Cpm1Tokenizer.load(file)
    has_merges = file.name == NAMES_FILE and file.with_name(MERGES_FILE).is_file()
    return BytePairTokenizer.load(file) if has_merges else WordPiece.load(file)


def _vocabulary_file(folder: Path) -> Path:
    names = (PIECES_FILE, HUB_PIECES_FILE, VOCAB_FILE, NAMES_FILE)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: none of {', '.join(names)} is in this folder; copy one there")
