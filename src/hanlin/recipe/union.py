"""A section of a recipe that is one of several: `generate: {method: beam, beams: 3}` or `{method: sample, top_p: 0.9}`.

One of its settings names the value of the axis; the others are those of that value, so what means nothing to it cannot
be written. Each value is a file: a module of a package, or a Python file named by its path. It exports one object whose
`settings` is the class of its settings (pydantic, no torch), or that class itself; what else there is to the object is
the business of the room that reads it. This room knows the package by its name only, and imports it when a recipe is
read.

`Annotated[OptimizerSettings, OneOf("hanlin.training.optimizers", key="name", exports="optimizer", default="adamw")]` is
the type of such a section; `OptimizerSettings` is the base class of all its classes, with what they have in common.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from hanlin.core.errors import ConfigError
from hanlin.core.extensions import import_file, module_names

__all__ = ["UNUSABLE", "OneOf", "find_unions"]

UNUSABLE = "unusable_file"
"""The type of pydantic's error for a file that cannot be used; its message says all."""
_FILE = "the path of a Python file"


@dataclass(frozen=True)
class OneOf:
    """package: of the modules, dotted; key: the setting that names the value; exports: the name of a module's object;
    default: the value of a section that names none; others: modules of the package that are no values.
    """

    package: str
    key: str
    exports: str
    default: str
    others: tuple[str, ...] = ()

    @cached_property
    def names(self) -> list[str]:
        """The values that have a module."""
        return [name for name in module_names(self.package) if name not in self.others]

    def load(self, name: str) -> Any:
        """What the module, or the file, of this name exports.

        Raises: ConfigError.
        """
        if name.endswith(".py"):
            module = import_file(Path(name))
        elif name in self.names:
            module = importlib.import_module(f"{self.package}.{name}")
        else:
            raise ConfigError(f"{self.exports}: there is no {name!r}; expected {', '.join(self.names)} or {_FILE}")
        found = getattr(module, self.exports, None)
        settings = _settings(found)
        if not (isinstance(settings, type) and issubclass(settings, BaseModel) and self.key in settings.model_fields):
            raise ConfigError(f"{name}: it must define `{self.exports}`, as the modules of {self.package} do")
        return found

    def make(self, values: Any) -> Any:
        """The settings that a section stands for; a bare name stands for the defaults of that value.

        What is no section is returned as it is, for pydantic to judge.
        Raises: ValidationError.
        """
        if isinstance(values, str):
            values = {self.key: values}
        if not isinstance(values, Mapping):
            return values
        name = values.get(self.key, self.default)
        return self._settings_of(name).model_validate({self.key: name, **values})

    def make_default(self) -> Any:
        """The settings of a section that is not there."""
        return self.make({})

    def keys_of(self, name: Any) -> list[str]:
        """The settings that a section of this value may hold; none when there is no such value."""
        try:
            return list(self._settings_of(name).model_fields)
        except ValidationError:
            return []

    def owners(self, key: str) -> list[str]:
        """The values, of those that have a module, that know a setting."""
        return [name for name in self.names if key in self.keys_of(name)]

    def _settings_of(self, name: Any) -> type[BaseModel]:
        if not isinstance(name, str) or not (name in self.names or name.endswith(".py")):
            expected = " or ".join([*(f"'{known}'" for known in self.names), _FILE])
            raise self._mistake(InitErrorDetails(type="literal_error", ctx={"expected": expected}, input=name))
        try:
            return _settings(self.load(name))
        except ConfigError as error:
            reason = PydanticCustomError(UNUSABLE, "{reason}", {"reason": str(error)})
            raise self._mistake(InitErrorDetails(type=reason, input=name)) from None

    def _mistake(self, detail: InitErrorDetails) -> ValidationError:
        return ValidationError.from_exception_data(self.exports, [{**detail, "loc": (self.key,)}])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Make the class that is meant, accept it as one of the base class, and write all of its fields."""
        as_it_is = core_schema.wrap_serializer_function_ser_schema(
            lambda value, serialise: serialise(value), schema=core_schema.any_schema()
        )
        return core_schema.no_info_before_validator_function(self.make, handler(source), serialization=as_it_is)


def _settings(found: Any) -> Any:
    return found if isinstance(found, type) else getattr(found, "settings", None)


def find_unions(section: type[BaseModel], inside: str = "") -> Iterator[tuple[str, OneOf]]:
    """The sections below this one that are one of several, with their dotted keys."""
    for name, field in section.model_fields.items():
        union = next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)
        if union is not None:
            yield f"{inside}{name}", union
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from find_unions(field.annotation, f"{inside}{name}.")
