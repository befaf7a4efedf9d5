"""What the docs name exists: links, commands and their options, recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hanlin.cli.main import _parser, command_names
from hanlin.recipe.reading import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
COMMAND = re.compile(r"^(?:\$ |#  +)?(hanlin [a-z].*?)(?:\s+#.*)?$", re.MULTILINE)
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=_name)
def test_commands_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`(hanlin [a-z][^`]*)`", text)
    for command in [*COMMAND.findall(text), *quoted]:
        name = command.split()[1]
        if name == "--help" or not name.isalpha():
            continue
        assert name in command_names(), command
        help_text = _help(name)
        assert all(option in help_text for option in OPTION.findall(command)), command


@pytest.mark.parametrize("recipe", RECIPES, ids=_name)
def test_recipes_are_right(recipe: Path) -> None:
    load_recipe(recipe)


def _help(name: str) -> str:
    parser = _parser([name])
    action = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    found = action.choices[name].format_help()
    nested = [inner for inner in action.choices[name]._actions if isinstance(inner.choices, dict)]
    return found + "".join(parser.format_help() for inner in nested for parser in inner.choices.values())
