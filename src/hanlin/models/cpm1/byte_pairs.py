"""GPT-2's byte-level vocabulary (Radford et al. 2019): what the pretraining program takes with `--merge-file`.

A text is cut into words, numbers, marks and white space; the bytes of each piece, written as visible letters, are then
joined pair by pair in the order of `merges.txt`. Special tokens are never read out of text.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.core.os_errors import explain

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_SPACES = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
)
_MOST_CACHED = 1 << 16

Pair = tuple[str, str]


class BytePairTokenizer:
    """Text <-> ids."""

    def __init__(self, ids: dict[str, int], merges: Sequence[Pair]) -> None:
        """ids: by token, in visible letters; merges: the pairs to join, first ones first.

        Raises: DataError.
        """
        if missing := [letter for letter in _letters().values() if letter not in ids]:
            raise DataError(f"no byte-level vocabulary: it lacks the bytes {' '.join(missing[:8])}")
        self._ids, self._merges = dict(ids), list(merges)
        self._tokens = {id: token for token, id in ids.items()}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._letters, self._bytes = _letters(), {letter: byte for byte, letter in _letters().items()}
        self._encode_piece = lru_cache(_MOST_CACHED)(self._joined)

    @classmethod
    def load(cls, file: Path) -> BytePairTokenizer:
        """file: a vocab.json beside which merges.txt lies.

        Raises: DataError.
        """
        merges = file.with_name(MERGES_FILE)
        try:
            lines = merges.read_text(encoding="utf-8").splitlines()
            ids = json.loads(file.read_text(encoding="utf-8"))
            pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
            return cls(ids, pairs)
        except OSError as error:
            raise DataError(explain(error, doing="read")) from None
        except ValueError as error:
            raise DataError(f"{file}, {merges.name}: no byte-level vocabulary ({error})") from None

    def __reduce__(self) -> tuple[type, tuple[dict[str, int], list[Pair]]]:
        return BytePairTokenizer, (self._ids, self._merges)

    def save(self, folder: Path) -> None:
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        (Path(folder) / VOCAB_FILE).write_text(json.dumps(self._ids, ensure_ascii=False), encoding="utf-8")
        (Path(folder) / MERGES_FILE).write_text(f"#version: 0.2\n{merges}", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return max(self._tokens) + 1

    @property
    def fingerprint(self) -> str:
        """Changes when any text would get other ids."""
        return hashlib.sha256(json.dumps([sorted(self._ids.items()), self._merges]).encode()).hexdigest()

    def find(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        return self._ids.get(token)

    def encode(self, text: str) -> list[int]:
        return [id for piece in cut_pieces(text) for id in self._encode_piece(piece)]

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` for many texts; threads would not help."""
        del threads
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no whole character become U+FFFD, ids without a token nothing."""
        letters = "".join(self._tokens.get(id, "") for id in ids)
        return bytes(self._bytes[letter] for letter in letters if letter in self._bytes).decode("utf-8", "replace")

    def _joined(self, piece: str) -> tuple[int, ...]:
        parts = [self._letters[byte] for byte in piece.encode("utf-8", "surrogatepass")]
        while ranked := [(self._ranks[pair], pair) for pair in pairwise(parts) if pair in self._ranks]:
            parts = list(_join(parts, min(ranked)[1]))
        return tuple(self._ids[part] for part in parts)


def cut_pieces(text: str) -> Iterator[str]:
    """Contractions, words, numbers and marks, each with one blank before it, and what is left of white space."""
    start = 0
    while start < len(text):
        end = _piece_end(text, start)
        yield text[start:end]
        start = end


def _piece_end(text: str, start: int) -> int:
    if contraction := next((form for form in _CONTRACTIONS if text.startswith(form, start)), None):
        return start + len(contraction)
    first = start + 1 if text[start] == " " and start + 1 < len(text) else start
    kind = _kind(text[first])
    if kind == "space":
        end = _run_end(text, start, kind)
        # The last white space before a word is left for that word.
        return end - 1 if end < len(text) and end - start > 1 else end
    return _run_end(text, first, kind)


def _run_end(text: str, start: int, kind: str) -> int:
    return next((place for place in range(start, len(text)) if _kind(text[place]) != kind), len(text))


def _kind(character: str) -> str:
    if character in _SPACES:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "mark")


def _join(parts: Sequence[str], pair: Pair) -> Iterator[str]:
    """The parts with every such pair joined, from the left."""
    place = 0
    while place < len(parts):
        is_pair = tuple(parts[place : place + 2]) == pair
        yield "".join(pair) if is_pair else parts[place]
        place += 2 if is_pair else 1


def _pair(line: str) -> Pair:
    left, right = line.split(" ")
    return left, right


@lru_cache(1)
def _letters() -> dict[int, str]:
    """The visible letter of each byte: itself where it is one, else from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}
