"""A JSON schema of recipes (draft 2020-12), with which editors complete, explain and check them.

It says what can be said of a setting alone; whether settings go together, and whether files exist, says `hanlin check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from hanlin.core.language import Language
from hanlin.models.family import Family, family_names, load_family
from hanlin.recipe.settings import Recipe
from hanlin.recipe.union import OneOf
from hanlin.reference.chinese import said_in
from hanlin.reference.comments import field_comments
from hanlin.reference.settings import REQUIRED, family_settings, plain

__all__ = ["TITLE", "recipe_schema"]

TITLE = "hanlin recipe"

_FILE = {"type": "string", "pattern": r"\.py$"}


def recipe_schema(language: Language = "en") -> dict[str, Any]:
    """The schema of a whole recipe; options, sizes and the shape of the model are those of the family it names."""
    return _told(_whole_schema(), language)


def _whole_schema() -> dict[str, Any]:
    schema = _of_section(Recipe)
    schema["properties"]["model"]["properties"]["family"]["anyOf"] = [{"enum": family_names()}, _FILE]
    families = [_when_family(load_family(name)) for name in family_names()]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        **schema,
        "allOf": families,
    }


def _told(part: Any, language: Language) -> Any:
    """The same with what is said of the settings in a language."""
    if isinstance(part, list):
        return [_told(one, language) for one in part]
    if not isinstance(part, dict):
        return part
    found = {name: _told(value, language) for name, value in part.items()}
    if isinstance(described := part.get("description"), str):
        found["description"] = said_in(language, described)
    return found


def _of_section(section: type[BaseModel]) -> dict[str, Any]:
    properties, required = {}, []
    stated = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        union = next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)
        if union is not None:
            found = _of_union(union)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found = _of_section(field.annotation)
        else:
            default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
            found = _of_value(stated[name], default)
        properties[name] = {**found, "description": field_comments(section).get(name, "")}
        required += [name] if field.is_required() else []
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _of_union(union: OneOf) -> dict[str, Any]:
    """A bare name, a section of one of the values (the name may be left out of the default's), or one of a file."""
    sections = []
    for value in union.names:
        section = _of_section(type(union.make(value)))
        section["properties"][union.key] |= {"const": value}
        section["required"] = [union.key] if value != union.default else []
        sections.append(section)
    of_file = {"type": "object", "properties": {union.key: _FILE}, "required": [union.key]}
    return {"anyOf": [{"enum": union.names}, _FILE, *sections, of_file]}


def _when_family(family: Family) -> dict[str, Any]:
    """What is said of the family's own sections where the recipe names it."""
    shape = {"size": {"enum": [*family.sizes, None]}, "config": _of_fields(family, "model.config")}
    options = {"options": _of_fields(family, "data.options")}
    then = {"model": {"properties": shape}, "data": {"properties": options}}
    named = {"properties": {"model": {"properties": {"family": {"const": family.name}}, "required": ["family"]}}}
    return {"if": {**named, "required": ["model"]}, "then": {"properties": then}}


def _of_fields(family: Family, section: str) -> dict[str, Any]:
    found = {}
    for setting in family_settings(family):
        where, _, name = setting.key.rpartition(".")
        if where == section:
            stated = TypeAdapter(setting.kind).json_schema()
            found[name] = {**_of_value(stated, setting.default), "description": setting.effect}
    return {"type": "object", "additionalProperties": False, "properties": found}


def _of_value(stated: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """What pydantic states of a field; a single value stands for a list of one."""
    found = {key: value for key, value in stated.items() if key not in ("default", "title")}
    if found.get("type") == "array" and "prefixItems" not in found:
        found = {"anyOf": [found, found["items"]]}
    return found if default is REQUIRED else {**found, "default": plain(default)}
