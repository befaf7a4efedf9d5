"""What an attack is, and what several of them do to a world."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from judging import Try

from hanlin.core.manifest import write_manifest

MARK = "code-ran"
"""A folder that is there once a file has run code."""
QUESTION = json.dumps({"input": "今天", "<ans>": ""}, ensure_ascii=False, separators=(",", ":"))


class Attack(NamedTuple):
    """plant: alters a world; tries: the commands that meet what was planted."""

    name: str
    plant: Callable[[Path], object]
    tries: list[Try]


def ask(*model: str) -> tuple[str, ...]:
    """Words that have one question answered."""
    return ("generate", *model, "--record", QUESTION)


def script(world: Path) -> str:
    """The path of a Python file that leaves the mark when it is run."""
    path = world / "evil.py"
    path.write_text(f"import os\nos.mkdir({str(world / MARK)!r})\n")
    return str(path)


def change_json(path: Path, changes: dict[str, Any]) -> None:
    """Write other values, and let the folder's manifest fit, as an attacker would."""
    write_json(path, json.dumps({**json.loads(path.read_text("utf-8")), **changes}))


def write_json(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    write_manifest(path.parent)


def change_recipe(path: Path, key: str, value: Any) -> None:
    """Give a setting, named as `section.name`, another value."""
    recipe = yaml.safe_load(path.read_text("utf-8"))
    section, _, name = key.partition(".")
    if name:
        recipe.setdefault(section, {})[name] = value
    else:
        recipe[section] = value
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
