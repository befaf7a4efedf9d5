"""CPM-Ant's text <-> ids: jieba's words first, then the longest match inside each of them.

CPM-Ant is the model before CPM-Bee; only its tokenizer lives here. Marks have no syntax of their own in its texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hanlin.core.errors import DataError
from hanlin.tokens.longest_match import LongestMatch

_HIDDEN = {"</n>": "\n", "</_>": " "}
# Longer words become one unknown token.
_LONGEST_WORD = 200


class CpmAntTokenizer:
    """Ids by line number; what no token covers becomes <unk>, character by character."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = [_HIDDEN.get(word, word) for word in words]
        self._ids = {word: i for i, word in enumerate(self._words)}
        self._match = LongestMatch(self._ids)

    @classmethod
    def load(cls, path: Path) -> CpmAntTokenizer:
        """Read a vocabulary file with one token a line.

        Raises: DataError.
        """
        if not Path(path).is_file():
            raise DataError(f"there is no vocabulary at {path}; give a file with one token a line")
        return cls(line.strip() for line in Path(path).read_text("utf-8").splitlines())

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        import jieba

        return [token for word in jieba.cut(text) for token in self._encode_word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._words[token] for token in ids if token >= 0)

    def _encode_word(self, word: str) -> list[int]:
        unknown = self._ids["<unk>"]
        if len(word) > _LONGEST_WORD:
            return [unknown]
        ids: list[int] = []
        for piece in self._match.cut(word):
            ids.extend([self._ids[piece]] if piece in self._ids else [unknown] * len(piece))
        return ids
