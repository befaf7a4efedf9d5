"""Every setting of a recipe, with what is known of it: type, limits, default, effect, and whose it is.

The settings classes are the source (recipe/settings.py, the files of tuning methods, optimizers and ways to generate,
the options and configurations of the families); the effect is the comment above a field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel

from hanlin.models.family import Family, family_names, load_family
from hanlin.recipe.settings import Recipe
from hanlin.recipe.union import OneOf
from hanlin.recipe.unused_settings import depends_on
from hanlin.reference.comments import field_comments

__all__ = [
    "FAMILY",
    "REQUIRED",
    "NameOrFile",
    "Setting",
    "all_settings",
    "family_settings",
    "recipe_settings",
    "section_texts",
]

REQUIRED = object()
"""In place of a default."""

FAMILY = "model.family"
"""What chooses the settings of a family, as `tuning.method` chooses those of a method."""

_STANDARD = {
    "vocab_size": "Rows of the embedding.",
    "hidden_size": "Width of the hidden states.",
    "num_layers": "Number of blocks.",
    "num_heads": "Heads of attention; they divide its queries.",
    "ffn_size": "Inner width of the feed-forward.",
    "norm": "Kind of normalisation.",
    "norm_eps": "Added to the variance in normalisation.",
    "has_final_norm": "Whether there is a normalisation behind the last block.",
    "gelu": "Form of GELU in the feed-forward.",
    "rotary_base": "Base of the frequencies of rotary position embedding.",
    "dropout": "Share of activations that is dropped, in training only.",
    "end_ids": "Ids that end an answer.",
    "pad_id": "Id that fills rows up.",
}
"""What the usual names in a model's configuration mean, where no comment says more."""


@dataclass(frozen=True)
class NameOrFile:
    """The kind of a setting that names a module of hanlin's, or a Python file by its path."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """key: dotted; kind: its type, as annotated, or a `NameOrFile`; limits: as annotated beside it; default: REQUIRED
    where there is none; effect: English.

    chosen_by, values: the setting whose values these are that it belongs to; empty: it belongs to all recipes.
    depends_on: the settings that can make it idle.
    """

    key: str
    kind: Any
    limits: tuple[Any, ...]
    default: Any
    effect: str
    chosen_by: str = ""
    values: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()


@cache
def all_settings() -> tuple[Setting, ...]:
    """Those of recipes, and those of each family that hanlin has."""
    families = [load_family(name) for name in family_names()]
    return (*recipe_settings(), *(setting for family in families for setting in family_settings(family)))


@cache
def recipe_settings() -> tuple[Setting, ...]:
    """All but those of a family: section by section, in the order in which they are written down."""
    return tuple(_of_sections(Recipe, ""))


def family_settings(family: Family) -> Iterator[Setting]:
    """The options of its samples and the fields of its configuration."""
    if family.options is not None:
        yield from _of_dataclass("data.options", family.options, family.name)
    yield from _of_dataclass("model.config", family.config, family.name)


def section_texts() -> dict[str, str]:
    """What each section of a recipe is about."""
    return {name: text for name, text in field_comments(Recipe).items() if name in Recipe.model_fields}


def _of_sections(section: type[BaseModel], inside: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        key = f"{inside}{name}"
        union = next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)
        if union is not None:
            yield from _of_union(union, key)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _of_sections(field.annotation, f"{key}.")
        else:
            yield _setting(section, name, key)


def _of_union(union: OneOf, section: str) -> Iterator[Setting]:
    """What all values have in common first; then the settings of some, together where they say the same."""
    found: dict[tuple[Any, ...], Setting] = {}
    for value in union.names:
        owner = _settings_class(union, value)
        for name in (name for name in owner.model_fields if name != union.key):
            one = replace(_setting(owner, name, f"{section}.{name}"), chosen_by=f"{section}.{union.key}")
            same = (one.key, str(one.kind), str(one.limits), str(one.default), one.effect)
            found[same] = replace(one, values=(*(found[same].values if same in found else ()), value))
    shared = [one for one in found.values() if len(one.values) == len(union.names)]
    name = Setting(f"{section}.{union.key}", NameOrFile(tuple(union.names)), (), union.default, _comment_of_name(union))
    yield name
    yield from (replace(one, chosen_by="", values=()) for one in shared)
    yield from (one for one in found.values() if one not in shared)


def _comment_of_name(union: OneOf) -> str:
    """What the setting does that names the value; the class says it that all values share."""
    common = _settings_class(union, union.default).__mro__[1]
    return field_comments(common).get(union.key, "")


def _settings_class(union: OneOf, value: str) -> type[BaseModel]:
    return type(union.make(value))


def _setting(owner: type[BaseModel], name: str, key: str) -> Setting:
    field = owner.model_fields[name]
    default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
    kind = NameOrFile(tuple(family_names())) if key == FAMILY else field.annotation
    return Setting(key, kind, tuple(field.metadata), default, _effect(owner, name), depends_on=depends_on(key))


def _of_dataclass(section: str, owner: Any, family: str) -> Iterator[Setting]:
    hints = get_type_hints(owner, include_extras=True)
    for field in dataclasses.fields(owner):
        effect = _effect(owner, field.name) or _STANDARD.get(field.name, "")
        yield Setting(f"{section}.{field.name}", hints[field.name], (), _default(field), effect, FAMILY, (family,))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _effect(owner: type, name: str) -> str:
    return field_comments(owner).get(name, "")


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str | dict):
        return [plain(part) for part in value]
    return value
