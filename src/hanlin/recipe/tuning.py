"""What a tuning method is, and how it is found: by its name under `hanlin.tuning`, or by the path of a Python file.

One file holds all of a method: its settings and what it does to a model. `method` in that file is a `TuningMethod`.
Recipes are read without torch, so a method of ours imports it inside its functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.plan import Along
from hanlin.core.python_file import import_file
from hanlin.recipe.section import Settings, mistake

if TYPE_CHECKING:
    import torch

_PACKAGE = "hanlin.tuning"
_DEFAULT = "full"
_OTHER_MODULES = ("apply",)


class TuningMethod(Settings):
    """The section `tuning` of a recipe, and what its method does. A subclass states its settings as fields.

    The base is frozen before `add_to` is called, unless the method trains it. A module of the model names in its
    attribute `added` the parameters that were added to it; the base's own names stay as they are.
    """

    # The name of a file under hanlin.tuning, or the path of a Python file that defines `method`.
    method: str

    along: ClassVar[Mapping[str, Along]] = {}
    """How the parameters that it adds to linears are divided over tensor ranks, by the last part of their names. Others
    are whole on every rank."""

    reads_base: ClassVar[tuple[str, ...]] = ()
    """The parameters of the base whose values the first values of what is added come from."""

    @property
    def trains_base(self) -> bool:
        """Whether a run changes the weights that it starts from."""
        return False

    def add_to(self, model: Any, family: Any) -> None:
        """Add what is trained, without values yet; the model may be on the meta device.

        family: a `models.family.Family`.
        Raises: ConfigError, beginning with the key, for a model that does not take it.
        """
        raise NotImplementedError

    def init_additions(self, model: Any, generator: torch.Generator | None) -> None:
        """Give what was added its first values, which are drawn; here each module does so that can `init_addition`."""
        for module in model.modules():
            if hasattr(module, "init_addition"):
                module.init_addition(generator)

    def begin(self, model: Any, tokenizer: Any, family: Any, base: Path | None) -> None:
        """Give it the first values that the settings ask for in place of drawn ones; base: the weights' path."""

    def adapt_processor(self, processor: Any, family: Any) -> Any:
        """The family's processor as the method needs the rows.

        Raises: ConfigError, beginning with the key.
        """
        return processor

    def resolved(self, added: Iterable[str]) -> Self:
        """The settings as an adapter folder states them; added: the names of its tensors."""
        return self

    def completed(self, recipe: TuningMethod) -> TuningMethod:
        """The settings of an adapter; what its files do not tell is taken from a recipe's."""
        return self

    def merge(self, model: Any) -> None:
        """Work what was added into the base's weights; the model is as if it had never been tuned this way.

        Raises: CheckpointError where that cannot be done.
        """
        raise CheckpointError(f"a {self.method} cannot be worked into weights; use it as model.adapter")

    @classmethod
    def formats(cls) -> Mapping[str, Any]:
        """The layouts besides our adapter folder in which it is found and written, by the word for `convert --to`: each
        an `adapters.adapter.AdapterFormat`."""
        return {}


def method_names() -> list[str]:
    """The methods that live under `hanlin.tuning`."""
    package = importlib.import_module(_PACKAGE)
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.name not in _OTHER_MODULES)


def load_method(name: str) -> type[TuningMethod]:
    """The method of this name, or of the Python file at this path.

    Raises: ConfigError.
    """
    if name.endswith(".py"):
        return _method_of_file(Path(name).expanduser())
    if name not in method_names():
        known = ", ".join(method_names())
        raise ConfigError(f"there is no tuning method {name!r}; known: {known}, or a path to a .py file")
    return importlib.import_module(f"{_PACKAGE}.{name}").method


def default_method() -> TuningMethod:
    return load_method(_DEFAULT)(method=_DEFAULT)


def chosen_method(section: Mapping[str, Any]) -> str:
    """The name of the method in the values of a section `tuning`."""
    return str(section.get("method", _DEFAULT))


def methods_with(setting: str) -> list[str]:
    """The methods of ours that have a setting of this name."""
    return [name for name in method_names() if setting in load_method(name).model_fields]


def read_method(section: Any) -> Any:
    """The method that the values of a section `tuning` stand for; what is no section stays as it is.

    Raises: ValidationError with the key of each mistake.
    """
    if not isinstance(section, Mapping):
        return section
    name = chosen_method(section)
    try:
        found = load_method(name)
    except ConfigError as error:
        raise mistake("method", str(error), name) from error
    return found.model_validate({**section, "method": name})


def _method_of_file(path: Path) -> type[TuningMethod]:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    found = getattr(import_file(path), "method", None)
    if not (isinstance(found, type) and issubclass(found, TuningMethod)):
        raise ConfigError(f"{path}: it must define `method`, a subclass of TuningMethod; see docs/tuning.md")
    return found
