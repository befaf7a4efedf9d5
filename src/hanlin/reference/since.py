"""Since which version there is a setting, from `since.yaml`, which each release completes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from hanlin.core.version import version
from hanlin.reference.settings import FAMILY, Setting, all_settings

__all__ = ["add_version", "first_version", "since"]

SINCE = "since.yaml"


def since(setting: Setting) -> str | None:
    """The version that brought it; of one that none has brought yet this one, or None where that is out already."""
    coming = None if version() in _released() else version()
    return next((brought for brought, names in _released().items() if _name(setting) in names), coming)


def first_version() -> str:
    """That of all settings of which nothing else is said."""
    return next(iter(_released()), version())


def add_version(path: Path, brought: str) -> None:
    """Write into a `since.yaml` that the settings which are in no version yet came with this one."""
    text = path.read_text("utf-8")
    released = yaml.safe_load(text)
    known = {name for names in released.values() for name in names}
    released[brought] = sorted({_name(setting) for setting in all_settings()} - known)
    path.write_text(_comments(text.splitlines()) + yaml.safe_dump(released, sort_keys=False), "utf-8")


@cache
def _released() -> dict[str, list[str]]:
    return yaml.safe_load((files("hanlin.reference") / SINCE).read_text("utf-8"))


def _name(setting: Setting) -> str:
    """Its key, behind the family that it is of: another may get one of the same name later."""
    return " ".join([*(setting.values if setting.chosen_by == FAMILY else ()), setting.key])


def _comments(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines if line.startswith("#"))
