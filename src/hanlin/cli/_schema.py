"""Recipes as commands write them: with a first line by which editors find the JSON schema, which lies beside."""

from __future__ import annotations

import os
from pathlib import Path

from hanlin.cli._targets import new_target
from hanlin.core.errors import ConfigError
from hanlin.core.files import check_target, read_json_object, replace_json, replaced_file
from hanlin.core.language import language

SCHEMA = "recipe.schema.json"


def new_recipe(path: Path, *, overwrite: bool) -> Path:
    """`new_target` of a recipe, which a schema is to lie beside. Raises: ConfigError where that is another file."""
    from hanlin.reference.schema import TITLE

    target = new_target(path, overwrite=overwrite)
    schema = target.with_name(SCHEMA)
    if schema.is_file() and read_json_object(schema, ConfigError).get("title") != TITLE:
        raise ConfigError(f"{schema}: is no schema of recipes, and one is to be written there; move it away")
    return target


def write_recipe(path: Path, text: str) -> None:
    """path: as it was given to `new_recipe`."""
    from hanlin.reference.schema import recipe_schema

    target = check_target(path)
    schema = target.with_name(SCHEMA)
    replace_json(schema, recipe_schema(language()))
    # An editor looks beside the name by which it opens the recipe; a link may stand in another folder.
    is_beside = os.path.realpath(path.parent) == os.path.realpath(target.parent)
    place = SCHEMA if is_beside else schema.as_uri()
    with replaced_file(target) as stream:
        stream.write(f"# yaml-language-server: $schema={place}\n{text}".encode())
