"""What may be asked: predicates, choices and scores, in the shape in which OpenAI's clients write them.

Texts are given whole or as parts. What no model here can read (pictures), or what would have no effect, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from hanlin.core.errors import DataError
from hanlin.core.field_problems import first_field_problem

__all__ = [
    "MOST_QUESTIONS",
    "TAGS",
    "ChoiceQuestion",
    "PredicateQuestion",
    "Question",
    "ScoreQuestion",
    "TextParts",
    "Unread",
    "WireModel",
    "problem_of",
    "read_questions",
    "text_of_parts",
]

MOST_QUESTIONS, MOST_OPTIONS = 400, 255
_MOST_LEVELS, _MOST_VALUES, _MOST_BYTES = 32, 10_000, 256 * 2**10  # of a part of JSON, as OpenAI has it
TAGS = frozenset(
    {
        *(
            "str",
            "bool",
            "int",
            "float",
            "list[str]",
            "model-field",
            "list[dict[str,any]]",
            "dict[str,any]",
            "predicate",
            "choice",
            "score",
            "message",
        ),
        *("input_text", "input_json", "input_image", "output_text", "refusal"),
        *(f"{kind}_call{end}" for kind in ("function", "custom_tool") for end in ("", "_output")),
    }
)
"""What pydantic puts among the names of fields where a value may be of several types."""


class WireModel(BaseModel):
    """An object of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _refuse(value: Any) -> Any:
    if value is not None:
        raise ValueError("nothing is cached from one request to the next; leave it out")
    return value


Unread = Annotated[Any, BeforeValidator(_refuse)]
"""A field of prompt caching."""


class TextPart(WireModel):
    type: Literal["input_text"]
    text: StrictStr
    prompt_cache_breakpoint: Unread = None


class JsonPart(WireModel):
    """An object, or a list of them, that is read as its text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @property
    def text(self) -> str:
        return json.dumps(self.data, ensure_ascii=False, separators=(",", ":"))

    @model_validator(mode="after")
    def _is_small(self) -> JsonPart:
        depths = list(_depths(self.data))
        if max(depths) > _MOST_LEVELS or len(depths) > _MOST_VALUES or len(self.text.encode()) > _MOST_BYTES:
            raise ValueError(
                f"more than {_MOST_LEVELS} levels, {_MOST_VALUES:,} values or {_MOST_BYTES:,} bytes; shorten it"
            )
        return self


class ImagePart(WireModel):
    type: Literal["input_image"]
    image_url: Any = None
    detail: Any = None

    @model_validator(mode="before")
    @classmethod
    def _unseen(cls, value: Any) -> Any:
        raise ValueError("no model here reads pictures")


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if not isinstance(value, list | tuple):
        raise ValueError("expected a text, or a list of parts")
    return value


Part = Annotated[TextPart | JsonPart | ImagePart, Field(discriminator="type")]
TextParts = Annotated[tuple[Part, ...], BeforeValidator(_as_parts)]


class _Asked(WireModel):
    """What all questions have in common."""

    instructions: TextParts
    name: StrictStr | None = None

    @property
    def asked(self) -> str:
        return text_of_parts(self.instructions)


class PredicateQuestion(_Asked):
    """How likely is a statement about the input to be true?"""

    type: Literal["predicate"]

    @model_validator(mode="after")
    def _states(self) -> PredicateQuestion:
        if not self.asked.strip():
            raise ValueError("instructions: an empty statement is neither true nor false")
        return self


class ChoiceOption(WireModel):
    value: StrictStr | StrictBool
    description: StrictStr | None = None


class ChoiceQuestion(_Asked):
    """Which of the options is right?"""

    type: Literal["choice"]
    choices: tuple[ChoiceOption, ...] = Field(min_length=2, max_length=MOST_OPTIONS)

    @model_validator(mode="after")
    def _differ(self) -> ChoiceQuestion:
        _refuse_equal("choices", [(type(one.value), one.value) for one in self.choices])
        _refuse_empty("choices", [one.value for one in self.choices])
        return self


class ScoreLevel(WireModel):
    label: StrictStr
    description: StrictStr | None = None


class ScoreQuestion(_Asked):
    """Where on a ladder of levels, from the lowest to the highest, is the input?"""

    type: Literal["score"]
    levels: tuple[ScoreLevel, ...] = Field(min_length=2, max_length=MOST_OPTIONS)

    @model_validator(mode="after")
    def _differ(self) -> ScoreQuestion:
        _refuse_equal("levels", [one.label for one in self.levels])
        _refuse_empty("levels", [one.label for one in self.levels])
        return self


Question = Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


def read_questions(values: Any) -> tuple[PredicateQuestion | ChoiceQuestion | ScoreQuestion, ...]:
    """Questions as JSON has them.

    Raises: DataError naming the field.
    """
    bounded = Annotated[tuple[Question, ...], Field(min_length=1, max_length=MOST_QUESTIONS)]
    try:
        return TypeAdapter(bounded).validate_python(values)
    except ValidationError as error:
        raise DataError(problem_of("questions", error)) from None


def problem_of(name: str, error: ValidationError) -> str:
    """The first of what is wrong with a value of this name."""
    problems = [{**one, "loc": (name, *one["loc"])} for one in error.errors(include_url=False)]
    return first_field_problem(problems, TAGS).message


def text_of_parts(parts: Sequence[Any]) -> str:
    """TextParts as one text, each in lines of its own."""
    return "\n".join(part.text for part in parts)


def _refuse_equal(field: str, values: Sequence[Any]) -> None:
    if twice := next((value for place, value in enumerate(values) if value in values[:place]), None):
        raise ValueError(f"{field}: {twice!r:.60} stands there twice; each one must be unique")


def _refuse_empty(field: str, values: Sequence[str | bool]) -> None:
    if any(isinstance(value, str) and not value.strip() for value in values):
        raise ValueError(f"{field}: an empty text cannot be chosen")


def _depths(value: Any, depth: int = 1) -> Iterator[int]:
    """The depth of each value."""
    yield depth
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _depths(below, depth + 1)
