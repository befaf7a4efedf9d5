"""Settings by name, as a user may know it: the key, the section, the last word, a value, another trainer's word."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from hanlin.recipe.other_names import OTHER_NAMES
from hanlin.recipe.settings import Recipe
from hanlin.reference.settings import NameOrFile, Setting, all_settings, recipe_settings

__all__ = ["KnownAs", "choices_of", "find_settings", "nearest_settings"]


@dataclass(frozen=True)
class KnownAs:
    """settings: what a name stands for; is_section: all of a section, of which a line each is enough."""

    settings: Sequence[Setting]
    is_section: bool = False


def find_settings(name: str) -> KnownAs:
    """What a name stands for; nothing where it is unknown."""
    known = all_settings()
    if same := [one for one in known if one.key == name]:
        inside = [one for one in known if one.key.startswith(f"{name}.")]  # data.options, model.config
        return KnownAs([*same, *inside], is_section=bool(inside))
    if inside := [one for one in _section(name) if one.key.startswith(f"{name}.")]:
        return KnownAs(inside, is_section=True)
    if last := [one for one in known if one.key.rpartition(".")[2] == name]:
        return KnownAs(last)
    if name in OTHER_NAMES:
        return find_settings(OTHER_NAMES[name])
    chooses = [one for one in known if isinstance(one.kind, NameOrFile) and name in one.kind.names]
    chosen = [one for one in known if name in one.values]
    return KnownAs([*chooses, *chosen], is_section=bool(chosen))


def nearest_settings(name: str, count: int = 5) -> list[str]:
    """The keys that look like it, the nearest first."""
    by_word = {one.key.rpartition(".")[2]: one.key for one in reversed(all_settings())}
    sections = [] if "." in name else Recipe.model_fields
    words = [*_keys(all_settings()), *by_word, *OTHER_NAMES, *sections]
    close = difflib.get_close_matches(name, words, n=count, cutoff=0.6)
    return list(dict.fromkeys(by_word.get(word, OTHER_NAMES.get(word, word)) for word in close))


def _section(name: str) -> Sequence[Setting]:
    """A recipe's own settings where a whole section is asked for; those of the families are many."""
    return recipe_settings() if name in Recipe.model_fields else all_settings()


def _keys(settings: Iterable[Setting]) -> list[str]:
    return list(dict.fromkeys(one.key for one in settings))


def choices_of(key: str) -> list[str]:
    """The values of a setting that has a choice of them, as a command line has them."""
    kinds = [one.kind for one in all_settings() if one.key == key]
    return list(dict.fromkeys(choice for kind in kinds for choice in _choices(kind)))


def _choices(kind: Any) -> list[str]:
    if isinstance(kind, NameOrFile):
        return list(kind.names)
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [value if isinstance(value, str) else json.dumps(value) for value in get_args(kind)]
    return ["null"] if kind is type(None) else [choice for part in get_args(kind) for choice in _choices(part)]
