"""Modules that are chosen in a recipe: by their name in a package, or as a Python file named by its path.

A Python file is run here and nowhere else, and here stands the rule of which one may be (docs/security.md): in a
command, the files that its command line names, or all with --trust-code; what only a file names (a recipe, the
config.yaml of a run, a list of data sets) is not run. A Python program that uses this package decides for itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from hanlin.core.errors import ConfigError
from hanlin.core.files import expanded

__all__ = ["import_file", "is_imported", "module_names", "trusting", "why_untrusted"]

_TRUSTED: ContextVar[frozenset[str] | None] = ContextVar("trusted", default=None)
"""The files that may be run; None: all of them."""


def module_names(package: str) -> list[str]:
    """The names by which modules of a package (dotted) may be chosen, in the order of the alphabet."""
    return sorted(found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__))


def import_file(path: Path) -> ModuleType:
    """The module of a Python file; it is run once in a process.

    Raises: ConfigError when there is no such file, or it is not to be run.
    """
    path = expanded(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if reason := why_untrusted(path):
        raise ConfigError(reason)
    name = _identity(path)
    return sys.modules.get(name) or _run_file(path, name)


@contextmanager
def trusting(files: Iterable[Path] | None) -> Iterator[None]:
    """Let these Python files be run inside, and no others; None: all."""
    token = _TRUSTED.set(None if files is None else frozenset(map(_identity, files)))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def why_untrusted(path: Path) -> str:
    """Why a Python file is not run; empty: it may be."""
    trusted = _TRUSTED.get()
    if trusted is None or _identity(path) in trusted:
        return ""
    return (
        f"{path} is Python code, which is not run because a file names it; read it, and if you trust it, add "
        "--trust-code, or name it on the command line"
    )


def is_imported(path: Path) -> bool:
    """Whether a Python file was named by the user's recipe or command already, and has been run for that."""
    return _identity(path) in sys.modules


def _identity(path: Path) -> str:
    return os.path.realpath(expanded(path))


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
