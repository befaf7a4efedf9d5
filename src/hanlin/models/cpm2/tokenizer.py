"""CPM-2's text <-> ids: jieba's words, each cut greedily into the longest tokens from the left.

There are two vocabularies. The Chinese one (cn) folds full-width letters, but keeps Chinese punctuation. The bilingual
one (cn_en, the one with <go>) marks what goes on inside a word with "##", drops the spaces between two English tokens
and puts them back when it decodes, around marks and sentinels as well. Specials such as <s_0> are found in no text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.tokens.segments import BLANK, cut_segments, join_segments, restore_blanks
from hanlin.tokens.vocabulary import VOCAB_FILE, read_vocabulary

REQUIRED = ("<unk>", "<pad>", "<eod>", "<s_0>", "<s_1>")

# ASCII and the space in their full-width forms, without the punctuation that the vocabulary has.
_FOLDED = {code: code - 0xFEE0 for code in range(0xFF00, 0xFF5F) if chr(code) not in "，。！（）？、；："}
_FOLDED |= {0x3000: 0x20}
_CHINESE = re.compile("[\u4e00-\u9fff]")
_GOES_ON = "##"
# Longer words are unknown as a whole.
_MAX_WORD = 200
# Words whose ids are remembered; they follow Zipf's law.
_MAX_REMEMBERED = 100_000


class _Remembered(dict[str, tuple[int, ...]]):
    """Words -> ids; those of a new word are found by `cut`. A dict's own look-up is what makes many words fast."""

    def __init__(self, cut: Callable[[str], tuple[int, ...]]) -> None:
        super().__init__()
        self._cut = cut

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self._cut(word)
        if len(self) < _MAX_REMEMBERED:
            self[word] = ids
        return ids


class Cpm2Tokenizer:
    """Ids by line number of the vocabulary file; doubles_lone: a text of one id is given twice, as cn_en does it."""

    def __init__(self, words: Iterable[str], *, doubles_lone: bool = True) -> None:
        """Raises: DataError."""
        self._words = list(words)
        self._ids = {word: id for id, word in enumerate(self._words)}
        if missing := [word for word in REQUIRED if word not in self._ids]:
            raise DataError(f"this is no CPM-2 vocabulary: it lacks {', '.join(missing)}")
        if len(self._ids) != len(self._words):
            raise DataError(f"{len(self._words) - len(self._ids)} tokens are listed twice; each has one line")
        self.is_bilingual = "<go>" in self._ids
        self._doubles_lone = doubles_lone
        self._longest = max(map(len, self._words))
        self._space = self._ids.get(BLANK)
        self._remembered = _Remembered(self._cut_word)
        self._known: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path) -> Cpm2Tokenizer:
        """Read a vocabulary file, or the vocab.txt of a folder.

        Raises: DataError.
        """
        file, lines = read_vocabulary(path)
        try:
            return cls(line.strip() for line in lines)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None

    def without_doubling(self) -> Cpm2Tokenizer:
        """The same vocabulary; a text of one id is given once."""
        return Cpm2Tokenizer(self._words, doubles_lone=False)

    def save(self, folder: Path) -> None:
        (Path(folder) / VOCAB_FILE).write_bytes("".join(f"{word}\n" for word in self._words).encode())

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    @property
    def pad_id(self) -> int:
        return self._ids["<pad>"]

    @property
    def end_id(self) -> int:
        """<eod>, the end of a document."""
        return self._ids["<eod>"]

    @property
    def unknown_id(self) -> int:
        return self._ids["<unk>"]

    @property
    def num_sentinels(self) -> int:
        return next(number for number in range(len(self._words)) if f"<s_{number}>" not in self._ids)

    def sentinel(self, number: int) -> int:
        """The id of <s_{number}>."""
        return self._ids[f"<s_{number}>"]

    def find(self, token: str) -> int | None:
        """The id of a token, None if there is none."""
        return self._ids.get(token)

    def tokens_of(self, ids: Iterable[int]) -> list[str]:
        """Raises: DataError for an id that the vocabulary lacks."""
        return [self._token(id) for id in ids]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; nothing is folded and no space is dropped."""
        return [self._words[id] for id in self._joined_ids(cut_segments(text))]

    def encode(self, text: str) -> list[int]:
        if (known := self._known.get(text)) is not None:
            return list(known)
        return self._filtered(self._joined_ids(cut_segments(self._folded(text))))

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each; many texts at once are faster."""
        joined = join_segments([self._folded(text) for text in texts])
        return [self._filtered(self._joined_ids(line.split(" ") if line else ())) for line in joined]

    def knowing(self, texts: Collection[str]) -> Cpm2Tokenizer:
        """The same tokenizer, which has encoded these texts already."""
        other = copy.copy(self)
        other._known = dict(zip(texts, self.encode_many(list(texts)), strict=True))
        return other

    def _folded(self, text: str) -> str:
        return text if self.is_bilingual else text.translate(_FOLDED)

    def _joined_ids(self, segments: Iterable[str]) -> list[int]:
        return list(chain.from_iterable(map(self._remembered.__getitem__, segments)))

    def _filtered(self, ids: list[int]) -> list[int]:
        """Without the spaces between two English tokens, of the bilingual vocabulary."""
        if not self.is_bilingual:
            return ids
        if len(ids) == 1 and self._doubles_lone:
            return ids * 2  # kept (cpm2_tokenizer): it is both the first and the last id
        if self._space not in ids:
            return ids
        between = range(1, len(ids) - 1)
        idle = {i for i in between if ids[i] == self._space and self._is_english(ids[i - 1], ids[i + 1])}
        return [id for i, id in enumerate(ids) if i not in idle]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, specials as they are written.

        Raises: DataError for an id that the vocabulary lacks.
        """
        tokens = self.tokens_of(ids)
        return restore_blanks(_join_words(tokens) if self.is_bilingual else "".join(tokens))

    def begins_word(self, id: int) -> bool:
        """Whether a token is not written onto the one before it."""
        return not (self.is_bilingual and self._token(id).startswith(_GOES_ON))

    def _cut_word(self, word: str) -> tuple[int, ...]:
        unknown = self._ids["<unk>"]
        if len(word) > _MAX_WORD:
            return (unknown,)
        ids, start = [], 0
        while start < len(word):
            ends = range(min(len(word), start + self._longest), start, -1)
            found = ((self._ids.get(self._written(word[start:end], start)), end) for end in ends)
            id, start = next(((id, end) for id, end in found if id is not None), (unknown, start + 1))
            ids.append(id)
        return tuple(ids)

    def _written(self, piece: str, start: int) -> str:
        """As the vocabulary lists a piece that begins at `start` in its word."""
        is_marked = self.is_bilingual and start > 0 and piece != BLANK and not _CHINESE.search(piece)
        return _GOES_ON + piece if is_marked else piece

    def _is_english(self, *ids: int) -> bool:
        return not any(_is_chinese(self._words[id]) for id in ids)

    def _token(self, id: int) -> str:
        if not 0 <= id < len(self._words):
            raise DataError(f"id {id} is not in the vocabulary ({len(self._words)} tokens)")
        return self._words[id]


def _is_chinese(token: str) -> bool:
    return token == BLANK or _CHINESE.search(token) is not None


def _join_words(tokens: Iterable[str]) -> str:
    """Tokens as one text, with a space between words that are not Chinese."""
    words: list[str] = []
    for token in tokens:
        if token.startswith(_GOES_ON) and words:
            words[-1] += token.removeprefix(_GOES_ON)
        else:
            words.append(token)
    spaced = [
        word if number == 0 or _is_chinese(word) or _is_chinese(words[number - 1]) else BLANK + word
        for number, word in enumerate(words)
    ]
    return "".join(spaced)
