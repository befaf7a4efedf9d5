"""The language that a user reads: HANLIN_LANG, else the locale of the process; English where neither says Chinese."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["Language", "language"]

Language = Literal["en", "zh"]


def language() -> Language:
    """`HANLIN_LANG=zh` or `en` says it; else the first of the variables that choose the language of messages."""
    names = ("HANLIN_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next(filter(None, map(os.environ.get, names)), "en")
    return "zh" if chosen.lower().startswith("zh") else "en"
