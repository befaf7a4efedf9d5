"""Explain a command, or a setting of a recipe: type, default, effect, and what it goes with.

hanlin help                        all commands
hanlin help train                  a command; and the settings of the section of that name
hanlin help train.lr               a setting (docs/settings.md has all of them)
hanlin help train.optimizer        a section; likewise a method (lora, adafactor, beam) or a family (its options)
hanlin help learning_rate          another trainer's word, or a name that is not quite right
hanlin help --schema               the JSON schema of recipes, with which editors complete and check them
"""

from __future__ import annotations

import argparse
import difflib
import json

from hanlin.core.errors import ConfigError
from hanlin.core.language import language

HELP = "explain a command or a setting: hanlin help train.lr"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="of a command, a setting (train.lr), a section, a method or a family")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of recipes")


def run(args: argparse.Namespace) -> int:
    from hanlin.cli.main import command_help, command_names

    if args.schema:
        if args.name is not None:
            raise ConfigError("--schema: is of whole recipes; leave the name out")
        _print_schema()
    elif args.name is None:
        print(command_help(None), end="")
    elif args.name in command_names():
        print(command_help(args.name), end="")
        _print_settings_beside(args.name)
    else:
        _print_settings(args.name)
    return 0


def _print_schema() -> None:
    from hanlin.reference.schema import recipe_schema

    print(json.dumps(recipe_schema(language()), ensure_ascii=False, indent=1))


def _print_settings_beside(command: str) -> None:
    """Some commands are called as the section of a recipe is that they go by."""
    from hanlin.recipe.settings import Recipe

    if command in Recipe.model_fields:
        print()
        _print_settings(command)


def _print_settings(name: str) -> None:
    """Raises: ConfigError with the nearest names."""
    from hanlin.cli.main import command_names
    from hanlin.reference.lookup import find_settings, nearest_settings
    from hanlin.reference.plain_text import section_text, setting_text

    found = find_settings(name)
    if not found.settings:
        commands = [] if "." in name else difflib.get_close_matches(name, command_names(), n=1)
        close = [*commands, *nearest_settings(name)]
        near = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; see `hanlin help`, docs/settings.md"
        raise ConfigError(f"help: there is no command and no setting {name!r}{near}")
    if found.is_section:
        print(section_text(found.settings, language()))
    else:
        print("\n\n".join(setting_text(setting, language()) for setting in found.settings))
