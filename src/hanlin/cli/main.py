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
from pathlib import Path
from types import ModuleType

import hanlin
from hanlin import cli
from hanlin.cli._trust import trusted_files
from hanlin.core.device import keep_blas_quiet
from hanlin.core.errors import HanlinError
from hanlin.core.extensions import trusting
from hanlin.core.os_errors import explain
from hanlin.core.terminal import mute, steady_streams

# The order of `hanlin --help`, along a user's way; commands that are not named here come last.
_ORDER = (
    *("demo", "doctor", "recipes", "data", "check", "plan", "prepare", "tokenizer"),
    *(
        "train",
        "launch",
        "deepspeed",
        "evaluate",
        "generate",
        "decide",
        "calibrate",
        "chat",
        "serve",
        "report",
        "inspect",
        "convert",
        "help",
    ),
)
_NOT_COMMANDS = {"main"}
_LOCALE = "the locale of this terminal ({}) cannot name the file {!r}; set PYTHONUTF8=1, or LC_ALL=C.UTF-8"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (the command says no), 2 (a user's mistake), 3 (another process of the
    run failed), 75 (interrupted and saved), 130 (Ctrl-C).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_blas_quiet()
    with steady_streams():
        try:
            code = _run(argv)
            sys.stdout.flush()
            return code
        except HanlinError as error:
            print(_in_red(f"hanlin: {error}"), file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("hanlin: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            mute(sys.stdout)
            return 141
        except UnicodeEncodeError as error:
            if error.encoding == "utf-8":
                raise
            print(_in_red(f"hanlin: {_LOCALE.format(error.encoding, error.object)}"), file=sys.stderr)
            return HanlinError.exit_code
        except OSError as error:
            print(_in_red(f"hanlin: {explain(error)}"), file=sys.stderr)
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
    with trusting(trusted_files(args)):
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


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser."""
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse; settings (`train.lr=1e-4`) may also stand behind the options, where argparse would not take them."""
    parser = _parser(argv)
    args, rest = parser.parse_known_args(argv)
    words = getattr(args, "changes", getattr(args, "words", None))
    if rest and (words is None or any(word.startswith("-") or "=" not in word for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if words is not None:
        words.extend(rest)
    return args


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hanlin",
        description="Pretrain, tune, evaluate, convert and run the CPM and ChatGLM families of Chinese models.",
        epilog="Start with `hanlin demo`. `hanlin COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"hanlin {hanlin.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    names = command_names()
    wanted = next((word for word in argv if word in names), None)
    for name in [wanted] if wanted else names:
        module = _command(name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=_Help)
        command.register("type", Path, _named_path)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"hanlin.cli.{name}")


def _named_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name; name a file or a folder (. is the current one)")
    return Path(text)


def _in_red(text: str) -> str:
    return f"\033[31m{text}\033[0m" if sys.stderr.isatty() else text


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions are the modules' docstrings, laid out as they are."""


if __name__ == "__main__":
    sys.exit(main())
