"""CPM-Bee's text <-> ids: longest match, with marks such as <mask_0> that get ids of their own.

"<" opens a mark that runs to the next ">"; a literal "<" is written "<<". Marks that are not in the vocabulary, and
runs of characters that no token covers, get ids from `vocab_size` on; a table (id -> string) hands them from call to
call. There is no normalisation and no byte fallback: a full-width letter or a tab is unknown unless it is a token.

The tokenizer in the Hugging Face hub shares the vocabulary but not the "<<" escape: there "<" without a later ">" is
literal, so that texts with "<" get other ids. Ours is the original's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hanlin.core.errors import DataError
from hanlin.tokens.longest_match import LongestMatch
from hanlin.tokens.vocabulary import VOCAB_FILE, read_vocabulary

REQUIRED = ("<pad>", "<unk>", "<mask>", "<s>", "</s>", "<root>", "<ans>")

# Names under which a vocabulary file lists what a line cannot hold, or would not show.
_HIDDEN = {"</n>": "\n", "</_>": " "}
# kept: a mark has at least one character that may be ">": "<>x>" is one mark (golden bee_tokenizer).
_PARTS = re.compile(r"(?P<mark><[^<][^<>]*>)|(?:[^<]+|<<)+")


class Token(NamedTuple):
    """A piece of a text, un-escaped."""

    text: str
    is_mark: bool = False
    is_unknown: bool = False

    @property
    def source(self) -> str:
        """The piece as it is written in a text."""
        return self.text if self.is_mark else escape(self.text)


def escape(text: str) -> str:
    """Write a literal text so that it contains no marks."""
    return text.replace("<", "<<")


def unescape(text: str) -> str:
    """Undo `escape`; marks stay as they are."""
    return text.replace("<<", "<")


class CpmBeeTokenizer:
    """Ids by line number of the vocabulary file."""

    def __init__(self, words: Iterable[str]) -> None:
        """words: in the order of their ids, with </n> for the newline and </_> for the space.

        Raises: DataError.
        """
        self._words = [_HIDDEN.get(word, word) for word in words]
        self._marks = {word: i for i, word in enumerate(self._words) if word[:1] == "<" and word[-1:] == ">"}
        self._plain = {word: i for i, word in enumerate(self._words) if word not in self._marks}
        self._match = LongestMatch(self._plain)
        if missing := [mark for mark in REQUIRED if mark not in self._marks]:
            raise DataError(f"this is no CPM-Bee vocabulary: it lacks {', '.join(missing)}")
        if len(self._marks) + len(self._plain) != len(self._words):
            raise DataError(f"the vocabulary lists {_first_repeated(self._words)!r} twice; each token has one line")

    @classmethod
    def load(cls, path: Path) -> CpmBeeTokenizer:
        """Read a vocabulary file, or the vocab.txt of a folder.

        Raises: DataError.
        """
        file, lines = read_vocabulary(path)
        try:
            return cls(line for line in lines if line)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None

    def save(self, folder: Path) -> None:
        shown = {word: name for name, word in _HIDDEN.items()}
        lines = "".join(f"{shown.get(word, word)}\n" for word in self._words)
        (Path(folder) / VOCAB_FILE).write_bytes(lines.encode())

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    @property
    def unknown_id(self) -> int:
        """Of every run of text without a token; its text is a sample's own."""
        return self._marks["<unk>"]

    @property
    def marks(self) -> dict[str, int]:
        """The marks of the vocabulary and their ids."""
        return dict(self._marks)

    def mark_id(self, mark: str) -> int | None:
        """The id of a mark, None if the vocabulary lacks it."""
        return self._marks.get(mark)

    find = mark_id

    def tokenize(self, text: str) -> list[Token]:
        """Cut a text into tokens.

        Raises: DataError with the place of a "<" that opens no mark.
        """
        tokens: list[Token] = []
        for part, is_mark in _parts(text):
            if is_mark:
                tokens.append(Token(part, is_mark=True))
            else:
                tokens.extend(Token(piece, is_unknown=piece not in self._plain) for piece in self._match.cut(part))
        return tokens

    def encode(self, text: str, table: dict[int, str] | None = None) -> list[int]:
        """Ids of a text; `table` (id -> string) gets the strings that are not in the vocabulary.

        Raises: DataError with the place of a "<" that opens no mark.
        """
        table = {} if table is None else table
        if "<" not in text:
            return self._encode_part(text, False, table)
        return [token for part, is_mark in _parts(text) for token in self._encode_part(part, is_mark, table)]

    def decode(self, ids: Iterable[int], table: dict[int, str] | None = None) -> str:
        """The text of ids, in the escaped form that `encode` reads; negative ids are left out.

        Raises: DataError for an id that is neither in the vocabulary nor in `table`.
        """
        table = {} if table is None else table
        return "".join(self._text(token, table) for token in ids if token >= 0)

    def check(self, text: str) -> None:
        """Raises: DataError with the place of a "<" that opens no mark."""
        if "<" in text:
            _scan(text)

    def marks_in(self, text: str) -> list[str]:
        """Each <name> of a text that is not escaped, known or not, in its order."""
        return [] if "<" not in text else [mark for part in _PARTS.finditer(text) if (mark := part.group("mark"))]

    def escape_unknown_marks(self, text: str) -> str:
        """Make <name> literal where it is neither a mark of the vocabulary nor a numbered one such as <mask_3>."""
        if "<" not in text:
            return text
        return _PARTS.sub(lambda part: escape(part.group()) if self._is_unknown(part) else part.group(), text)

    def kind(self, entry: str) -> str:
        """The mark of the vocabulary that stands in for a table entry: <mask> for <mask_3>, <unk> for plain text."""
        if not (entry.startswith("<") and entry.endswith(">")):
            return "<unk>"
        return f"<{entry[1:-1].split('_', 1)[0]}>"

    def _encode_part(self, part: str, is_mark: bool, table: dict[int, str]) -> list[int]:
        pieces = [part] if is_mark else self._match.cut(part)
        known = self._marks if is_mark else self._plain
        try:
            return list(map(known.__getitem__, pieces))
        except KeyError:  # some are not in the vocabulary; most texts have none
            entries = {entry: token for token, entry in table.items()}
        ids = []
        for piece in pieces:
            token = known.get(piece)
            if token is None:
                token = entries.setdefault(piece, self.vocab_size + len(entries))
                table[token] = piece
            ids.append(token)
        return ids

    def _text(self, token: int, table: dict[int, str]) -> str:
        if token in table:
            return table[token]
        if token >= self.vocab_size:
            raise DataError(f"id {token} is neither in the vocabulary ({self.vocab_size} tokens) nor in the table")
        word = self._words[token]
        return word if word in self._marks else escape(word)

    def _is_unknown(self, part: re.Match[str]) -> bool:
        mark = part.group("mark")
        return mark is not None and mark not in self._marks and self.kind(mark) not in self._marks


def _parts(text: str) -> list[tuple[str, bool]]:
    """Cut a text at its marks into (text without escapes, is a mark)."""
    found = [(part.group(), part.group("mark") is not None) for part in _scan(text)]
    return [(part if is_mark else unescape(part), is_mark) for part, is_mark in found]


def _scan(text: str) -> list[re.Match[str]]:
    """The marks of a text and what stands between them, without a gap."""
    parts, end = [], 0
    while end < len(text):
        part = _PARTS.match(text, end)
        if part is None:
            raise DataError(_lone_bracket(text, end))
        parts.append(part)
        end = part.end()
    return parts


def _lone_bracket(text: str, place: int) -> str:
    around = text[max(0, place - 10) : place + 20]
    return f'character {place + 1}: the "<" in {around!r} opens no mark such as <mask_0>; write "<<" for a literal "<"'


def _first_repeated(words: list[str]) -> str:
    seen: set[str] = set()
    return next(word for word in words if word in seen or seen.add(word))
