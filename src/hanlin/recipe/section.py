"""What all sections of a recipe have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


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
        return (value,) if is_list and isinstance(value, str | int | float) else value

    @field_validator("*", mode="after")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(part.expanduser() if isinstance(part, Path) else part for part in value)
        return value.expanduser() if isinstance(value, Path) else value


def mistake(key: str, text: str, found: Any) -> ValidationError:
    """What a validator of a section raises where one of its keys is wrong, so that the key's line is told."""
    kind = PydanticCustomError("value_error", "{text}", {"text": text})
    return ValidationError.from_exception_data("section", [InitErrorDetails(type=kind, loc=(key,), input=found)])
