"""English sentences about settings -> Chinese ones. English is the key, so a sentence that changes needs a new one."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from hanlin.core.language import Language

__all__ = ["chinese", "recipe_titles", "said_in"]


@cache
def chinese() -> dict[str, str]:
    """The catalogue: `chinese.yaml` beside this file."""
    return {entry["en"]: entry["zh"] for entry in _read("chinese.yaml")}


def recipe_titles() -> dict[str, str]:
    """What each recipe that comes with hanlin is, by its name."""
    return _read("recipes.yaml")


def _read(name: str) -> Any:
    return yaml.safe_load((files("hanlin.reference") / name).read_text(encoding="utf-8"))


def said_in(language: Language, text: str) -> str:
    """A sentence about a setting; one that nobody has translated, as of a user's own file, is said in English."""
    return text if language == "en" else chinese().get(text, text)
