"""Recipes as commands write them: with a first line by which editors find the JSON schema, which lies beside."""

from __future__ import annotations

from pathlib import Path

from hanlin.core.errors import ConfigError
from hanlin.core.files import read_json_object, replace_json, replaced_file
from hanlin.core.language import language

SCHEMA = "recipe.schema.json"


def write_recipe(target: Path, text: str) -> None:
    """Raises: ConfigError where another file has the schema's name."""
    from hanlin.reference.schema import TITLE, recipe_schema

    path = target.with_name(SCHEMA)
    if path.is_file() and read_json_object(path, ConfigError).get("title") != TITLE:
        raise ConfigError(f"{path}: is no schema of recipes, and one is to be written there; move it away")
    replace_json(path, recipe_schema(language()))
    with replaced_file(target) as stream:
        stream.write(f"# yaml-language-server: $schema={SCHEMA}\n{text}".encode())
