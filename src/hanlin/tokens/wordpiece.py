"""jieba's words, each cut into the longest pieces of a vocabulary from the left: the tokenizer of CPM-1's T5 and CPM-2.

Unlike BERT's it has no "##" and loses no unknown character's place: each is one `<unk>`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.os_errors import explain
from hanlin.tokens.longest_match import LongestMatch
from hanlin.tokens.segments import cut_segments, join_segments, restore_blanks
from hanlin.tokens.vocabulary import VOCAB_FILE

UNKNOWN = "<unk>"
MAX_SEGMENT = 200
"""Characters of a word above which it is one `<unk>` as a whole."""


class WordPiece:
    """Text <-> ids of a list of tokens."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """tokens: by their ids; `<unk>` must be among them.

        Raises: DataError.
        """
        self.tokens = list(tokens)
        self._ids = {token: id for id, token in enumerate(self.tokens)}
        if UNKNOWN not in self._ids:
            raise DataError(f"the vocabulary of {len(self.tokens)} tokens lacks {UNKNOWN}")
        self._match = LongestMatch(token for token in self._ids if token)

    @classmethod
    def load(cls, file: Path) -> WordPiece:
        """Read a `vocab.txt` (one token a line) or a `vocab.json` (token -> id).

        Raises: DataError.
        """
        try:
            text = Path(file).read_text(encoding="utf-8")
            return cls(_tokens_of_json(text) if file.suffix == ".json" else _tokens_of_lines(text))
        except OSError as error:
            raise DataError(f"{explain(error, file, 'read')}; give a vocab.txt or vocab.json") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{file}: no vocabulary ({error})") from None
        except DataError as error:
            raise DataError(f"{file}: {error}") from None

    def save(self, folder: Path) -> None:
        (Path(folder) / VOCAB_FILE).write_text("".join(f"{token}\n" for token in self.tokens), encoding="utf-8")

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return type(self), (self.tokens,)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """Changes when any text would get other ids."""
        return hashlib.sha256("\n".join(self.tokens).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def unknown_id(self) -> int:
        return self._ids[UNKNOWN]

    def find(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        return self._ids.get(token)

    def encode(self, text: str) -> list[int]:
        """Raises: DataError for half a character."""
        return [id for segment in cut_segments(text) for id in self._encode_segment(segment)]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once.

        Raises: DataError for half a character.
        """
        encode = self._encode_segment
        return [
            [id for segment in joined.split(" ") for id in encode(segment)] if joined else []
            for joined in join_segments(texts)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The tokens' text; ids that are no token count as nothing."""
        return restore_blanks("".join(self.tokens[id] for id in ids if 0 <= id < len(self.tokens)))

    def _encode_segment(self, segment: str) -> list[int]:
        if len(segment) > MAX_SEGMENT:
            return [self._ids[UNKNOWN]]
        if (whole := self._ids.get(segment)) is not None:
            return [whole]
        ids = []
        for piece in self._match.cut(segment):
            id = self._ids.get(piece)
            ids += [self._ids[UNKNOWN]] * len(piece) if id is None else [id]
        return ids


def _tokens_of_lines(text: str) -> list[str]:
    # A lone blank line inside would shift all ids if it were skipped.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _tokens_of_json(text: str) -> list[str]:
    ids = json.loads(text)
    if not isinstance(ids, dict) or sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise DataError("expected an object of tokens with the ids 0, 1, 2, ...")
    return sorted(ids, key=ids.__getitem__)
