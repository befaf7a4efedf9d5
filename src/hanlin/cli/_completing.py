"""What stands behind Tab: the shell calls `hanlin` with what has been typed in its environment (argcomplete)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

__all__ = ["answer_shell", "complete_settings", "is_asked"]


def is_asked() -> bool:
    """Whether a shell asks this process for completions."""
    return "_ARGCOMPLETE" in os.environ


def answer_shell(make_parser: Callable[[list[str]], argparse.ArgumentParser]) -> None:
    """Tell the shell, and end the process; make_parser: from the words that are there."""
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()[1:-1]
    argcomplete.autocomplete(make_parser(words))


def complete_settings(prefix: str, **_: Any) -> list[str]:
    """`train.l` -> `train.lr=`; `train.schedule=` -> its values; and files, since a recipe stands there too."""
    from argcomplete.completers import FilesCompleter

    from hanlin.reference.lookup import choices_of
    from hanlin.reference.settings import all_settings

    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={choice}" for choice in choices_of(key)]
    return [*(f"{one.key}=" for one in all_settings() if one.key.startswith(prefix)), *FilesCompleter()(prefix)]
