"""`hanlin COMMAND ...`: finds the commands, runs one, turns a user's mistake into a message and exit code 2.

A command is a file of this folder with `HELP`, `add_arguments(parser)` and `run(args) -> exit code`; only the one that
is asked for is imported. Commands import what is heavy inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import hanlin
from hanlin import cli
from hanlin.cli._completing import answer_shell, is_asked
from hanlin.cli._parser import CommandParser, HelpFormatter, add_command, did_you_mean, parse_words
from hanlin.cli._say import complain
from hanlin.cli._trust import trusted_files
from hanlin.core.device import keep_blas_quiet
from hanlin.core.errors import HanlinError
from hanlin.core.extensions import trusting
from hanlin.core.language import speaking
from hanlin.core.logging import telling_warnings
from hanlin.core.os_errors import explain
from hanlin.core.progress import at_work
from hanlin.core.terminal import mute, steady_streams
from hanlin.reference.messages import said

# The order of `hanlin --help`, along a user's way; commands that are not named here come last.
_ORDER = (
    *("demo", "doctor", "recipes", "init", "data", "check", "plan", "prepare", "tokenizer"),
    *(
        "train",
        "launch",
        "deepspeed",
        "evaluate",
        "suite",
        "lm_eval",
        "reproduce",
        "generate",
        "decide",
        "calibrate",
        "chat",
        "serve",
        "compare",
        "report",
        "inspect",
        "convert",
        "help",
        "completion",
    ),
)
_NOT_COMMANDS = {"main"}
_OVERVIEW = """\
examples:
  hanlin demo                        see it work, in a few minutes
  hanlin init rows.jsonl --base MODEL    a first recipe, for a file of rows and a model
  hanlin train recipe.yaml           train by a recipe

`hanlin help COMMAND` explains a command, `hanlin help train.lr` a setting of a recipe.
"""
_LOCALE = "the locale of this terminal ({}) cannot name the file {!r}; set PYTHONUTF8=1, or LC_ALL=C.UTF-8"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (the command says no), 2 (a user's mistake), 3 (another process of the
    run failed), 75 (interrupted and saved), 130 (Ctrl-C).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if is_asked():
        answer_shell(_parser)
    keep_blas_quiet()
    with steady_streams(), speaking(said), telling_warnings():
        try:
            code = _run(argv)
            sys.stdout.flush()
            return code
        except HanlinError as error:
            complain(error)
            return error.exit_code
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            mute(sys.stdout)
            return 141
        except UnicodeEncodeError as error:
            if error.encoding == "utf-8":
                raise
            complain(_LOCALE.format(error.encoding, error.object))
            return HanlinError.exit_code
        except OSError as error:
            complain(explain(error))
            _drop_unwritable()
            return HanlinError.exit_code


def _drop_unwritable() -> None:
    """Python would try standard output again at its end, and complain in its own way."""
    try:
        sys.stdout.flush()
    except OSError:
        mute(sys.stdout)


def _run(argv: Sequence[str]) -> int:
    try:
        args = _parse(argv)
    except SystemExit:
        sys.stdout.flush()  # the help
        raise
    args.argv = argv  # a command that starts further processes gives it to them
    with trusting(trusted_files(args)), at_work(args.parser.prog):
        return args.run(args)


def command_names() -> list[str]:
    """All commands in the order of the help."""
    found = [module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_")]
    names = [name for name in found if name not in _NOT_COMMANDS]
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def command_help(name: str | None) -> str:
    """What `hanlin NAME --help` prints; None: `hanlin --help`."""
    parser = _parser([name] if name else [])
    return (_subparsers(parser)[name] if name else parser).format_help()


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, CommandParser]:
    """The commands of a parser."""
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser(argv)
    first = argv[0] if argv else ""
    if first.startswith("--") and not any(option.startswith(first) for option in parser._option_string_actions):
        parser.error(f"unrecognized arguments: {first}{did_you_mean(first, parser._option_string_actions)}")
    if first and not first.startswith("-") and first not in command_names():
        near = did_you_mean(first, command_names()) or "; `hanlin --help` lists them"
        parser.exit(2, said(f"hanlin: there is no command {first!r}{near}\n", sys.stderr))
    return parse_words(parser, argv)


def _parser(argv: Sequence[str]) -> CommandParser:
    parser = CommandParser(
        prog="hanlin",
        description="Pretrain, tune, evaluate, convert and run the CPM and ChatGLM families of Chinese models.",
        epilog=_OVERVIEW,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"hanlin {hanlin.__version__}")
    parser.set_defaults(parser=parser)
    parser.examples = _OVERVIEW.splitlines()[1:4]
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    names = command_names()
    wanted = next((word for word in argv if word in names), None)
    for name in [wanted] if wanted else names:
        add_command(commands, name, _command(name))
    return parser


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"hanlin.cli.{name}")


if __name__ == "__main__":
    sys.exit(main())
