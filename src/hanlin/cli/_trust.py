"""Which Python files a command may run: those that its command line names, or all (core/extensions.py has the rule)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["add_trust", "trusted_files"]

_CHANGE = re.compile(r"\w+(\.\w+)*=")
"""The start of KEY=VALUE."""


def add_trust(parser: argparse._ActionsContainer) -> None:
    """For a command that reads a recipe, which may name Python files."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="run the Python files that the recipe, or a file that it names, asks for; "
        "those named on the command line are run anyway",
    )


def trusted_files(args: argparse.Namespace) -> list[Path] | None:
    """The Python files that the command line names as values; None: all are trusted."""
    if getattr(args, "trust_code", False):
        return None
    options = [value for name in ("family", "tuning") if (value := getattr(args, name, None)) is not None]
    changes = [word[match.end() :] for word in args.argv if (match := _CHANGE.match(word))]
    return [Path(text) for text in [*map(str, options), *_texts(changes)] if text.endswith(".py")]


def _texts(changes: list[str]) -> Iterator[str]:
    """All texts in values as they stand on the command line: `m.py`, `{method: m.py}`."""
    for text in changes:
        if text.endswith(".py"):
            yield text
        elif ".py" in text:
            yield from _leaves(text)


def _leaves(text: str) -> Iterator[str]:
    from hanlin.recipe.yaml12 import YamlError, parse_yaml

    try:
        values = [parse_yaml(text)[0]]
    except YamlError:
        return  # it is said when the change is read
    while values:
        value: Any = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
