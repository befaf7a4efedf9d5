"""Hanlin: pretrain, tune, evaluate, convert and run the CPM and ChatGLM families on stock PyTorch.

    import hanlin

    result = hanlin.train("recipe.yaml", {"train.lr": 1e-4})
    model = hanlin.load(result.folder)
    print(model.generate("今天天气"))

What a program may use is listed in `__all__` and described in docs/api.md; it is imported when it is used, so that
`import hanlin` takes milliseconds.
"""

from __future__ import annotations

import importlib
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
    from hanlin.api.runs import TrainResult, check, evaluate, load_recipe, prepare, train
    from hanlin.core.errors import CheckpointError, ConfigError, DataError, HanlinError
    from hanlin.recipe.reading import Problem
    from hanlin.recipe.settings import Recipe

_WHERE = {
    "convert": "hanlin.api.conversion",
    "load": "hanlin.api.loading",
    "Model": "hanlin.api.model",
    **dict.fromkeys(("TrainResult", "check", "evaluate", "load_recipe", "prepare", "train"), "hanlin.api.runs"),
    **dict.fromkeys(("CheckpointError", "ConfigError", "DataError", "HanlinError"), "hanlin.core.errors"),
    "Problem": "hanlin.recipe.reading",
    "Recipe": "hanlin.recipe.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'hanlin' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
