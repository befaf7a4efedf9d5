"""How every command reads its words and explains itself: one form of help, near names where a word is wrong.

A command's docstring is its description; the paragraphs in which lines begin with `hanlin` are its examples, which
stand at the end of the help and after an error about words that are missing.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from hanlin.cli._completing import complete_settings
from hanlin.reference.messages import said

__all__ = ["CommandParser", "add_command", "did_you_mean", "example_lines", "parse_words"]

_MISSING = "the following arguments are required"
_CHOICE = re.compile(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)")
MOST_EXAMPLES = 3
_WORDS = ("changes", "words")
"""Arguments among which settings may stand."""


class CommandParser(argparse.ArgumentParser):
    """An argparse parser whose errors say what to write instead; examples: of the command."""

    examples: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING) and self.examples:
            message += "\nfor example:\n" + "\n".join(f"  {line.strip()}" for line in self.examples[:MOST_EXAMPLES])
        elif found := _CHOICE.search(message):
            message += did_you_mean(found[1], re.findall(r"[^', ]+", found[2]))
        self.exit(2, said(f"{self.prog}: {message}\n`{self.prog} --help` explains it\n", sys.stderr))


def add_command(commands: argparse._SubParsersAction[CommandParser], name: str, module: ModuleType) -> CommandParser:
    """The parser of a command, as its module describes it."""
    about, examples = _divided(module.__doc__ or "")
    parser = commands.add_parser(
        name, help=module.HELP, description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.examples = example_lines(module)
    parser.register("type", Path, _named_path)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run, parser=parser)
    for action in parser._actions:
        if action.dest in _WORDS:
            action.completer = complete_settings  # pyright: ignore[reportAttributeAccessIssue]: argcomplete's
    return parser


def example_lines(module: ModuleType) -> list[str]:
    """The examples of a command's docstring, one a line."""
    return [line for line in (module.__doc__ or "").splitlines() if _is_example(line)]


def parse_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse; settings (`train.lr=1e-4`) may also stand behind the options, where argparse would not take them."""
    args, rest = parser.parse_known_args(words)
    settings = next((found for name in _WORDS if (found := getattr(args, name, None)) is not None), None)
    if wrong := [word for word in rest if settings is None or word.startswith("-") or "=" not in word]:
        options = args.parser._option_string_actions
        near = did_you_mean(wrong[0].partition("=")[0], options) if wrong[0].startswith("-") else ""
        args.parser.error(f"unrecognized arguments: {' '.join(wrong)}{near}")
    if settings is not None:
        settings.extend(rest)
    return args


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'train'?`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _divided(text: str) -> tuple[str, str]:
    """Description and examples of a docstring."""
    paragraphs = text.strip().split("\n\n")
    examples = [part for part in paragraphs if any(map(_is_example, part.splitlines()))]
    about = [part for part in paragraphs if part not in examples]
    shown = "\n".join(f"  {line}" if _is_example(line) else line for part in examples for line in part.splitlines())
    return "\n\n".join(about), f"examples:\n{shown}" if shown else ""


def _is_example(line: str) -> bool:
    return line.startswith("hanlin ") or " | hanlin " in line


def _named_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name; name a file or a folder (. is the current one)")
    return Path(text)
