"""Print what lets a shell complete commands, options, settings (KEY=VALUE) and files on Tab.

hanlin completion bash >> ~/.bashrc
hanlin completion zsh >> ~/.zshrc
hanlin completion fish > ~/.config/fish/completions/hanlin.fish

It needs the package argcomplete: pip install 'hanlin[completion]'.
"""

from __future__ import annotations

import argparse
import importlib.util

from hanlin.core.errors import ConfigError

HELP = "let a shell complete commands, options and settings on Tab"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("argcomplete") is None:
        raise ConfigError("completion needs the package argcomplete: pip install 'hanlin[completion]'")
    from argcomplete.shell_integration import shellcode

    print(shellcode(["hanlin"], shell=args.shell))
    return 0
