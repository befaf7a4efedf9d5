"""What pydantic finds wrong with JSON -> the field, and a sentence in our words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["FieldError", "FieldProblem", "first_field_problem"]

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "union_tag_invalid": "{discriminator} {expected_tags}",
    "union_tag_not_found": "an object that says its {discriminator}",
}
_CODES = {"extra_forbidden": "unknown_field", "missing": "missing", "value_error": "invalid_value"}


class FieldError(ValueError):
    """Of fields that do not go together; field: the one to be changed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class FieldProblem(NamedTuple):
    """field: empty for the whole; code: a word for programs."""

    field: str
    message: str
    code: str


def first_field_problem(problems: Sequence[Mapping[str, Any]], tags: frozenset[str] = frozenset()) -> FieldProblem:
    """The first of what pydantic found (`ValidationError.errors()`); where a value may be of several types, what it
    says of each, as far inside as it goes.

    tags: what pydantic puts among the names of fields for the types of a union.
    """
    own = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    deepest = max((_names(problem, tags) for problem in own), key=len)
    own = [problem for problem in own if _names(problem, tags) == deepest]
    field, problem = ".".join(deepest), own[0]
    reason = problem.get("ctx", {}).get("error")
    if isinstance(reason, FieldError):
        return FieldProblem(reason.field, f"{reason.field}: {reason}", "invalid_value")
    code = _CODES.get(problem["type"], "invalid_type" if problem["type"].endswith("_type") else "invalid_value")
    if code == "unknown_field":
        return FieldProblem(field, f"unknown field {field!r}; nothing is ignored here", code)
    if code == "missing":
        return FieldProblem(field, f"{field}: is missing", code)
    found, where = f"{problem['input']!r:.60}", field or "the body"
    if kinds := _expected(own):
        return FieldProblem(field, f"{where}: expected {' or '.join(kinds)}, found {found}", code)
    return FieldProblem(field, f"{where}: {str(problem['msg']).removeprefix('Value error, ')}, found {found}", code)


def _names(problem: Mapping[str, Any], tags: frozenset[str]) -> list[str]:
    return [str(part) for part in problem["loc"] if part not in tags and part != "[key]"]


def _expected(problems: Sequence[Mapping[str, Any]]) -> list[str]:
    """What there should be in place of what was found, where it is known in our words."""
    known = [one for one in problems if one["type"] in _EXPECTED]
    expected = [_EXPECTED[one["type"]].format(**one.get("ctx", {})).replace("'", '"') for one in known]
    numbers = {"a whole number", "a number"}  # either is said of any number
    return list(dict.fromkeys(one for one in expected if not (one == "a whole number" and numbers <= {*expected})))
