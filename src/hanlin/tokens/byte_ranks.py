"""A file of byte strings and their ranks, as tiktoken reads them (GLM-4's tokenizer.model): text <-> ids, nothing more.

The face is that of `SentencePiece`. The package tiktoken does the work; it is imported when a vocabulary is read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hanlin.core.errors import DataError

LINE = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
"""A token in base64, and its rank."""


class ByteRanks:
    """The ids of byte strings; a text is cut by `pattern` first."""

    def __init__(self, model: bytes, pattern: str) -> None:
        """model: the content of the file.

        Raises: DataError, also where the package tiktoken is missing.
        """
        self.model, self.pattern = model, pattern
        self.ranks = ranks = read_ranks(model)
        try:
            import tiktoken
        except ImportError:
            raise DataError("its vocabulary needs the package tiktoken; install it: pip install tiktoken") from None
        self.size = len(ranks)
        self._encoding: Any = tiktoken.Encoding("byte-ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def __reduce__(self) -> tuple[type, tuple[bytes, str]]:
        return ByteRanks, (self.model, self.pattern)

    @property
    def fingerprint(self) -> str:
        """sha256 of the file."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Encode many texts at once; threads: -1 = one per core."""
        count = os.cpu_count() or 1 if threads < 0 else threads
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=count)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; what is no id counts as nothing, bytes that are no whole character become U+FFFD."""
        return self._encoding.decode([id for id in ids if 0 <= id < self.size])


def read_ranks(model: bytes) -> dict[bytes, int]:
    """The ranks in the content of a file. Raises: DataError."""
    ranks = {}
    for number, line in enumerate(model.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(f"line {number}: a token in base64 and its rank expected, found {line[:40]!r}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"the {len(ranks):,} ranks are not 0, 1, 2, ...; the file is damaged")
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise DataError(f"{len(lacking)} of the 256 single bytes have no rank; the file is damaged")
    return ranks
