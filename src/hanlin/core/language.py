"""The language that a user reads: HANLIN_LANG, else the locale of the process; English where neither says Chinese."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

__all__ = ["Language", "Translate", "language", "speaking", "translate", "translated"]

Language = Literal["en", "zh"]

Translate = Callable[[str, Any], str]
"""A message, and the stream that it is for, to the same in the user's language."""

_TRANSLATE: ContextVar[Translate] = ContextVar("translate", default=lambda text, _: text)


def language() -> Language:
    """`HANLIN_LANG=zh` or `en` says it; else the first of the variables that choose the language of messages."""
    names = ("HANLIN_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next(filter(None, map(os.environ.get, names)), "en")
    return "zh" if chosen.lower().startswith("zh") else "en"


@contextmanager
def speaking(how: Translate) -> Iterator[None]:
    """Let what is shown be translated so; outside of a command all of it is English."""
    token = _TRANSLATE.set(how)
    try:
        yield
    finally:
        _TRANSLATE.reset(token)


def translate() -> Translate:
    """How what is shown is translated now; for other threads, which do not know it."""
    return _TRANSLATE.get()


def translated(text: str, stream: Any = None) -> str:
    """What is shown, in the user's language; stream: where (None: standard output)."""
    return _TRANSLATE.get()(text, stream)
