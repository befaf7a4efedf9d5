"""A sentencepiece model file: text <-> ids of its pieces, nothing more.

Ids outside the model never raise in `decode`; bytes that are no whole character become U+FFFD, one each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from hanlin.core.errors import DataError
from hanlin.core.os_errors import explain


class SentencePiece:
    """The pieces of one model file."""

    def __init__(self, model: bytes) -> None:
        """model: the content of the file.

        Raises: DataError.
        """
        broken = DataError(f"no sentencepiece model ({len(model):,} bytes); it is damaged or another file")
        if not model:  # the library would take nothing for "later"
            raise broken
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise broken from None
        self.model = model
        self.size = self._processor.get_piece_size()
        # What stands for no text: markers such as <s>, and <unk>.
        self._silent = frozenset(id for id in range(self.size) if self.is_silent(id))
        self._marker = next((id for id in sorted(self._silent) if self._processor.is_control(id)), None)

    @classmethod
    def load(cls, path: Path) -> SentencePiece:
        """Raises: DataError."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{explain(error, path, 'read')}; give a sentencepiece .model file") from None
        if model.startswith(b"version https://git-lfs"):
            raise DataError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
        try:
            return cls(model)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return SentencePiece, (self.model,)

    @property
    def fingerprint(self) -> str:
        """sha256 of the file."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Encode many texts at once; threads: -1 = one per core."""
        return self._processor.encode(list(texts), num_threads=threads)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; markers and ids that are no piece count as nothing, but part the bytes around them."""
        heard = (id if 0 <= id < self.size and id not in self._silent else self._marker for id in ids)
        return self._processor.decode([id for id in heard if id is not None])

    def piece(self, id: int) -> str:
        return self._processor.id_to_piece(id)

    @property
    def unknown_id(self) -> int | None:
        """What stands for text without a piece, where there is one."""
        id = self._processor.unk_id()
        return None if id < 0 else id

    def find(self, piece: str) -> int | None:
        """The id of a piece, None if there is none."""
        id = self._processor.piece_to_id(piece)
        return id if self.piece(id) == piece else None

    def is_silent(self, id: int) -> bool:
        """Whether a piece stands for no text: a marker such as <s>, or <unk>."""
        return self._processor.is_control(id) or self._processor.is_unknown(id)
