"""Sentences of a command to its user, beside its results: on standard error, in his language."""

from __future__ import annotations

import sys

from hanlin.reference.messages import said

__all__ = ["complain", "in_users_language", "say", "tell"]


def tell(text: str, end: str = "\n") -> None:
    """A result, or a line of one."""
    print(in_users_language(text), end=end)


def say(text: str) -> None:
    """A remark."""
    print(said(text, sys.stderr), file=sys.stderr, flush=True)


def complain(text: object) -> None:
    """What keeps a command from its work; red on a terminal."""
    message = said(f"hanlin: {text}", sys.stderr)
    print(f"\033[31m{message}\033[0m" if sys.stderr.isatty() else message, file=sys.stderr)


def in_users_language(text: str) -> str:
    """A sentence that is part of what a command prints."""
    return said(text, sys.stdout)
