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
from hanlin.cli._say import in_users_language
from hanlin.core.terminal import width_of
from hanlin.reference.messages import said

__all__ = [
    "CommandParser",
    "HelpFormatter",
    "add_command",
    "did_you_mean",
    "divided",
    "example_lines",
    "is_example",
    "parse_words",
]

_MISSING = "the following arguments are required"
REMARK = re.compile(r"(\s*(?:hanlin|.* \| hanlin) .*?)( {2,})(\S.*)")
"""A command, what stands between, and the remark on it."""
_CHOICE = re.compile(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)")
MOST_EXAMPLES = 3
_WIDTH = 100
"""Columns of a paragraph that was not wrapped by hand."""
_WORDS = ("changes", "words")
"""Arguments among which settings may stand."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, in the user's language."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, in_users_language("usage: ") if prefix is None else prefix)

    def start_section(self, heading: str | None) -> None:
        super().start_section(in_users_language(heading or ""))

    def add_text(self, text: str | None) -> None:
        super().add_text("\n\n".join(map(_paragraph, (text or "").split("\n\n"))) or None)

    def _get_help_string(self, action: argparse.Action) -> str:
        return in_users_language(action.help or "")

    def _split_lines(self, text: str, width: int) -> list[str]:
        return super()._split_lines(text, width) if text.isascii() else wrapped(text, width)


class CommandParser(argparse.ArgumentParser):
    """An argparse parser whose errors say what to write instead; examples: of the command."""

    examples: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING) and self.examples:
            lines = (f"  {_example(line.strip())}" for line in self.examples[:MOST_EXAMPLES])
            message += "\nfor example:\n" + "\n".join(lines)
        elif found := _CHOICE.search(message):
            message += did_you_mean(found[1], re.findall(r"[^', ]+", found[2]))
        self.exit(2, said(f"{self.prog}: {message}\n`{self.prog} --help` explains it\n", sys.stderr))


def add_command(commands: argparse._SubParsersAction[CommandParser], name: str, module: ModuleType) -> CommandParser:
    """The parser of a command, as its module describes it."""
    about, examples = divided(module.__doc__ or "")
    parser = commands.add_parser(
        name, help=module.HELP, description="\n\n".join(about), epilog=examples, formatter_class=HelpFormatter
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
    return [line for line in (module.__doc__ or "").splitlines() if is_example(line)]


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


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns of a terminal; a Chinese character takes two, and a line may end behind it."""
    lines = [""]
    for piece in re.findall(r"[!-~]+[，。；：、）]?|.[，。；：、）]?", text):
        if width_of(lines[-1] + piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _paragraph(text: str) -> str:
    """A paragraph, or the examples, in the user's language; the first in lines of its own."""
    if any(map(is_example, map(str.strip, text.splitlines()))):
        return "\n".join(map(_example, text.splitlines()))
    joined = " ".join(text.split())
    told = in_users_language(joined)
    return in_users_language(text) if told == joined else "\n".join(wrapped(told, _WIDTH))


def _example(line: str) -> str:
    """A line among examples: of a command the remark behind it, where that is known by itself."""
    command, gap, remark = found.groups() if (found := REMARK.fullmatch(line)) else ("", "", line)
    told = in_users_language(remark)
    return in_users_language(line) if told == remark else f"{command}{gap}{told}"


def divided(text: str) -> tuple[list[str], str]:
    """The paragraphs of a command's docstring, and its examples as the help shows them."""
    paragraphs = text.strip().split("\n\n")
    examples = [part for part in paragraphs if any(map(is_example, part.splitlines()))]
    about = [part for part in paragraphs if part not in examples]
    shown = "\n".join(f"  {line}" if is_example(line) else line for part in examples for line in part.splitlines())
    return about, f"examples:\n{shown}" if shown else ""


def is_example(line: str) -> bool:
    return line.startswith("hanlin ") or " | hanlin " in line


def _named_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name; name a file or a folder (. is the current one)")
    return Path(text)
