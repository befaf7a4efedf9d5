"""Modules that are chosen in a recipe: by their name in a package, or as a Python file named by its path."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from hanlin.core.errors import ConfigError

__all__ = ["import_file", "is_imported", "module_names"]


def module_names(package: str) -> list[str]:
    """The names by which modules of a package (dotted) may be chosen, in the order of the alphabet."""
    return sorted(found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__))


def import_file(path: Path) -> ModuleType:
    """The module of a Python file; it is run once in a process.

    Raises: ConfigError when there is no such file.
    """
    path = _expanded(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    name = str(path.resolve())
    return sys.modules.get(name) or _run_file(path, name)


def is_imported(path: Path) -> bool:
    """Whether a Python file was named by the user's recipe or command already, and has been run for that."""
    return str(_expanded(path).resolve()) in sys.modules


def _expanded(path: Path) -> Path:
    """`~` is the home folder; a user that this machine does not know leaves the path as it is."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _run_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up there what their annotations mean
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, SystemExit) as error:
        del sys.modules[name]
        where = f"{path}:{error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f"{path}: ends the program"
        raise ConfigError(f"{where}; this file cannot be used") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module
