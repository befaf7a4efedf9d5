"""What all sections of a recipe have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

MAX_NUMBER = 10**15
"""No setting needs a larger one, and arithmetic with it stays within 64 bits."""

MAX_NAME_BYTES = 255


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error.

    A single value stands for a list of one; `~` in a path is the home folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float} & {wanted, *get_args(wanted)}:
            raise ValueError("a number is expected")  # pydantic would take true as 1
        is_list = get_origin(wanted) is tuple and get_args(wanted)[-1] is Ellipsis
        return (value,) if is_list and isinstance(value, str | int | float | Path) else value

    @field_validator("*", mode="after")
    @classmethod
    def _bound(cls, value: Any) -> Any:
        """A setting without a limit of its own has that of all."""
        if any(_is_far_too_large(number) for number in (value if isinstance(value, tuple) else [value])):
            raise ValueError("the number is far too large")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(_usable(part) if isinstance(part, Path) else part for part in value)
        return _usable(value) if isinstance(value, Path) else value


def _is_far_too_large(number: Any) -> bool:
    return isinstance(number, int | float) and abs(number) > MAX_NUMBER


def _usable(path: Path) -> Path:
    """A path with `~` expanded.

    Raises: ValueError for what no file system takes.
    """
    if "\0" in str(path):
        raise ValueError("a path without NUL bytes is expected")
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError(f"a name in a path has at most {MAX_NAME_BYTES} bytes (a Chinese character takes 3)")
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~somebody
        raise ValueError(str(error)) from None


def mistake(key: str, text: str, found: Any) -> ValidationError:
    """What a validator of a section raises where one of its keys is wrong, so that the key's line is told."""
    kind = PydanticCustomError("value_error", "{text}", {"text": text})
    return ValidationError.from_exception_data("section", [InitErrorDetails(type=kind, loc=(key,), input=found)])
