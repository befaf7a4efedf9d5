from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError, model_validator

from hanlin.core.field_problems import FieldError, FieldProblem, first_field_problem


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: StrictInt | StrictFloat = Field(default=1, ge=0, le=2)
    names: str | list[str] = "a"


class Body(BaseModel):
    inner: Inner
    flag: bool = False
    other: int = 0

    @model_validator(mode="after")
    def _agree(self) -> Body:
        if self.flag and self.other:
            raise FieldError("other", "has no effect with flag")
        return self


@pytest.mark.parametrize(
    ("value", "field", "message", "code"),
    [
        (5, "", "the body: expected an object, found 5", "invalid_type"),
        ({}, "inner", "inner: is missing", "missing"),
        ({"inner": {"x": 1}}, "inner.x", "unknown field 'inner.x'; nothing is ignored here", "unknown_field"),
        ({"inner": {"size": "x"}}, "inner.size", "inner.size: expected a number, found 'x'", "invalid_type"),
        ({"inner": {"size": 3}}, "inner.size", "inner.size: expected at most 2, found 3", "invalid_value"),
        ({"inner": {"names": 1}}, "inner.names", "inner.names: expected a text or a list, found 1", "invalid_type"),
        ({"inner": {"names": [1]}}, "inner.names.0", "inner.names.0: expected a text, found 1", "invalid_type"),
        ({"inner": {}, "flag": True, "other": 1}, "other", "other: has no effect with flag", "invalid_value"),
    ],
)
def test_the_first_problem_is_told_in_our_words(value: Any, field: str, message: str, code: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(value)
    tags = frozenset({"int", "float", "str", "list[str]"})
    assert first_field_problem(caught.value.errors(), tags) == FieldProblem(field, message, code)
