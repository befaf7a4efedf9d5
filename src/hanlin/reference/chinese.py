"""English sentences about settings -> Chinese ones. English is the key, so a sentence that changes needs a new one."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml

from hanlin.core.language import Language

__all__ = ["chinese", "said_in"]


@cache
def chinese() -> dict[str, str]:
    """The catalogue: `chinese.yaml` beside this file."""
    entries = yaml.safe_load((files("hanlin.reference") / "chinese.yaml").read_text(encoding="utf-8"))
    return {entry["en"]: entry["zh"] for entry in entries}


def said_in(language: Language, text: str) -> str:
    """A sentence about a setting; one that nobody has translated, as of a user's own file, is said in English."""
    return text if language == "en" else chinese().get(text, text)
