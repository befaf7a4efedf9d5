"""The recipes and examples that come with the package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hanlin.core.errors import ConfigError

__all__ = ["shipped_file", "shipped_files"]

ShippedKind = Literal["recipes", "examples"]


def shipped_files(kind: ShippedKind) -> list[Path]:
    """By name: in the package as it was installed from a wheel, else in the checkout that it runs from.

    Raises: ConfigError where neither has them.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "shipped" / kind, package.parents[1] / kind):
        if folder.is_dir():
            return sorted(file for file in folder.iterdir() if file.is_file())
    raise ConfigError(f"this installation of hanlin has no {kind}; install it again from its wheel, or from its source")


def shipped_file(name: str) -> Path:
    """A recipe or an example by its name, with its ending or without.

    Raises: ConfigError with the nearest name.
    """
    files = [*shipped_files("recipes"), *shipped_files("examples")]
    found = next((file for file in files if name in (file.name, file.stem)), None)
    if found is None:
        near = _near(name, [file.stem if file.suffix == ".yaml" else file.name for file in files])
        raise ConfigError(f"there is no recipe or example {name!r:.80}{near}; see `hanlin recipes`")
    return found


def _near(name: str, known: Sequence[str]) -> str:
    """Up to three names that may be meant, to add to a message; nothing where none may."""
    asked = Path(name.lower().replace("-", "_")).stem
    parts = [one for one in known if len(asked) > 1 and asked in one.lower()]
    close = [*difflib.get_close_matches(asked, known, n=3, cutoff=0.6), *parts]
    shown = list(dict.fromkeys(close))[:3]
    return f"; did you mean {' or '.join(map(repr, shown))}?" if shown else ""
