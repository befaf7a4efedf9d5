"""What all families ask of an answer that is to be learned or compared."""

from __future__ import annotations

from hanlin.core.errors import DataError

__all__ = ["check_answer"]


def check_answer(text: str, key: str) -> None:
    """Whether there is more than white space in an answer; `key` is where it stands.

    Raises: DataError.
    """
    if not text.strip():
        raise DataError(f'"{key}" is empty: this row has no answer to learn (rows like it are for generate)')
