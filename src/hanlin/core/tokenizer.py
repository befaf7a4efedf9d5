"""What every family's tokenizer can do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable


class Tokenizer(Protocol):
    """Text <-> ids. Knows no torch."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files into a base folder."""
        ...


@runtime_checkable
class HasUnknown(Protocol):
    """A tokenizer that writes one id for what its vocabulary lacks."""

    @property
    def unknown_id(self) -> int | None:
        """None: there is nothing that it lacks."""
        ...


@runtime_checkable
class FindsTokens(Protocol):
    """A tokenizer whose vocabulary can be asked for one token."""

    def find(self, token: str, /) -> int | None:
        """The token's id; None: it is not in the vocabulary."""
        ...
