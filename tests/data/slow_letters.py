"""A tokenizer of characters that may be sent to other processes, and a job that indexes a file with it.

python slow_letters.py FILE PREFIX SECONDS
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hanlin.data.pretraining import corpus
from hanlin.data.pretraining.indexing import CorpusReport, Encoding, index_texts


@dataclass(frozen=True)
class SlowLetters:
    """Ids are code points; seconds: what a text takes."""

    seconds: float = 0.0
    vocab_size: int = 300

    def __call__(self) -> SlowLetters:
        return self

    def encode(self, text: str) -> list[int]:
        time.sleep(self.seconds)
        return [min(ord(letter), 299) for letter in text]

    def save(self, folder: Path) -> None:
        (folder / "name.txt").write_text("letters")


def index_small_pieces(paths: list[Path], prefix: Path, *, seconds: float = 0.0, **more) -> CorpusReport:
    chosen = {name: more.pop(name) for name in ("end", "per", "key") if name in more}
    encoding = Encoding(SlowLetters(seconds), **chosen)
    before, corpus.PIECE_BYTES = corpus.PIECE_BYTES, 40
    try:
        return index_texts(paths, prefix, encoding, progress=False, **more)
    finally:
        corpus.PIECE_BYTES = before


if __name__ == "__main__":
    index_small_pieces([Path(sys.argv[1])], Path(sys.argv[2]), seconds=float(sys.argv[3]), workers=2)
