"""Hanlin: pretrain, tune, evaluate, convert and run the CPM and ChatGLM families on stock PyTorch.

    import hanlin

    result = hanlin.train("recipe.yaml", {"train.lr": 1e-4})
    model = hanlin.load(result.folder)
    print(model.generate("今天天气"))

What a program may use is listed in `__all__` and described in docs/api.md; it is imported when it is used, so that
`import hanlin` takes milliseconds. Three functions have the name of a room of this package (`hanlin.train` is a
function, and the package in which the training loop lives): these rooms are modules that can be called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HanlinError",
    "Model",
    "Problem",
    "Recipe",
    "TrainResult",
    "__version__",
    "check",
    "convert",
    "evaluate",
    "load",
    "load_recipe",
    "prepare",
    "train",
]

if TYPE_CHECKING:
    from hanlin.api.conversion import convert
    from hanlin.api.loading import load
    from hanlin.api.model import Model
    from hanlin.api.runs import TrainResult, check, evaluate, prepare, train
    from hanlin.core.errors import CheckpointError, ConfigError, DataError, HanlinError
    from hanlin.recipe.reading import Problem, load_recipe
    from hanlin.recipe.settings import Recipe

_WHERE = {
    "convert": ("hanlin.api.conversion", "convert"),
    "load": ("hanlin.api.loading", "load"),
    "Model": ("hanlin.api.model", "Model"),
    **{name: ("hanlin.api.runs", name) for name in ("TrainResult", "check", "evaluate", "prepare", "train")},
    **{name: ("hanlin.core.errors", name) for name in ("CheckpointError", "ConfigError", "DataError", "HanlinError")},
    **{name: ("hanlin.recipe.reading", name) for name in ("Problem", "load_recipe")},
    "Recipe": ("hanlin.recipe.settings", "Recipe"),
}
_ROOMS = ("check", "evaluate", "train")
"""Functions that share their name with a package of ours."""


def _find(name: str) -> Any:
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"hanlin.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'hanlin' has no attribute {name!r}")
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Room(ModuleType):
    """A package whose name is that of a function: calling it calls the function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__wrapped__(*arguments, **options)

    @property
    def __wrapped__(self) -> Any:
        """Where `help` and `inspect.signature` look."""
        return _find(self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """This package: the import system sets each room as an attribute of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
