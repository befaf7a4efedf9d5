"""The recipes and examples that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import nearest

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
        names = [file.name for file in files]
        close = nearest(name, [*names, *(file.stem for file in files)])
        raise ConfigError(f"there is no recipe or example {name!r}{close}; see `hanlin recipes`")
    return found
