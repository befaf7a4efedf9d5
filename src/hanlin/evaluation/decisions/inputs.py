"""What questions are asked of: a text, or an ordered list of messages and calls of tools, which is read as a text.

A single message of the user is read as it is; of several each stands in lines of its own behind the name of its side,
as dialogues do in the records of families that know one question alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictStr, TypeAdapter, ValidationError, model_validator

from hanlin.core.errors import DataError
from hanlin.models.common.spoken import ASSISTANT_SAYS, USER_SAYS

from .questions import ImagePart, JsonPart, TextPart, TextParts, WireModel, problem_of, text_of_parts

__all__ = ["DecisionInput", "read_input", "text_of_input"]

_SAYS = {"user": USER_SAYS, "assistant": ASSISTANT_SAYS, "system": "系统：", "developer": "系统："}
_CALLS, _GIVES = "AI 调用工具", "工具结果："
_PARTS = {
    "user": ("input_text", "input_json", "input_image"),
    "system": ("input_text",),
    "developer": ("input_text",),
    "assistant": ("output_text", "refusal"),
}
"""What the messages of each side are made of."""


class SpokenPart(WireModel):
    type: Literal["output_text"]
    text: StrictStr


class RefusalPart(WireModel):
    type: Literal["refusal"]
    refusal: StrictStr

    @property
    def text(self) -> str:
        return self.refusal


def _whole(value: Any) -> Any:
    """A text as the one part that it is, of whatever side."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


AnyPart = Annotated[TextPart | JsonPart | ImagePart | SpokenPart | RefusalPart, Field(discriminator="type")]


class InputMessage(WireModel):
    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Annotated[tuple[AnyPart, ...], BeforeValidator(_whole)]
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("content"), list):
            return value
        role, kinds = value.get("role"), [part.get("type") for part in value["content"] if isinstance(part, dict)]
        if odd := [kind for kind in kinds if kind not in _PARTS.get(str(role), kinds)]:
            raise ValueError(f"content: a part of the type {odd[0]!r:.40} is not for the role {role}")
        return value

    @model_validator(mode="after")
    def _of_assistant(self) -> InputMessage:
        if self.phase is not None and self.role != "assistant":
            raise ValueError("phase: only of messages by the assistant")
        return self

    @property
    def text(self) -> str:
        return text_of_parts(self.content)

    @property
    def line(self) -> str:
        return f"{_SAYS[self.role]}{self.text}"


class _ToolItem(WireModel):
    """What calls of tools and their outputs have in common; id: nothing refers to it."""

    call_id: StrictStr
    id: StrictStr | None = None
    status: Literal["completed"] | None = None


class _Call(_ToolItem):
    name: StrictStr
    namespace: StrictStr | None = None

    def saying(self, given: str) -> str:
        return f"{_CALLS} {_full_name(self.namespace, self.name)}：{given}"


class _CallOutput(_ToolItem):
    output: TextParts

    @property
    def line(self) -> str:
        return f"{_GIVES}{text_of_parts(self.output)}"


class FunctionCall(_Call):
    type: Literal["function_call"]
    arguments: StrictStr

    @property
    def line(self) -> str:
        return self.saying(self.arguments)


class CustomToolCall(_Call):
    type: Literal["custom_tool_call"]
    input: StrictStr

    @property
    def line(self) -> str:
        return self.saying(self.input)


class FunctionCallOutput(_CallOutput):
    type: Literal["function_call_output"]


class CustomToolCallOutput(_CallOutput):
    type: Literal["custom_tool_call_output"]


def _typed(value: Any) -> Any:
    """A message need not say that it is one."""
    return {"type": "message", **value} if isinstance(value, dict) and "role" in value else value


_InputItem = Annotated[
    InputMessage | FunctionCall | FunctionCallOutput | CustomToolCall | CustomToolCallOutput,
    Field(discriminator="type"),
]
InputItem = Annotated[_InputItem, BeforeValidator(_typed)]


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list | tuple):
        raise ValueError("expected a text, or a list of messages and calls of tools")
    if not value:
        raise ValueError("an empty list, of which nothing can be asked")
    return value


def _check_calls(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whether each output belongs to a call before it."""
    called: dict[str, str] = {}
    for number, item in enumerate(items):
        if isinstance(item, FunctionCall | CustomToolCall):
            called[item.call_id] = item.type
        elif not isinstance(item, InputMessage) and called.get(item.call_id) != item.type.removesuffix("_output"):
            raise ValueError(f"item {number}: no call before it has the call_id {item.call_id!r:.40}")
    return items


DecisionInput = Annotated[tuple[InputItem, ...], BeforeValidator(_as_items)]
"""A text counts as the only message of the user."""


def read_input(value: Any) -> str:
    """The text of an input as JSON has it.

    Raises: DataError naming the field.
    """
    try:
        items = TypeAdapter(DecisionInput).validate_python(value)
    except ValidationError as error:
        raise DataError(problem_of("input", error)) from None
    return text_of_input(items)


def text_of_input(items: Sequence[Any]) -> str:
    """What is read of an input.

    Raises: DataError for an output whose call is missing.
    """
    try:
        _check_calls(tuple(items))
    except ValueError as error:
        raise DataError(f"input: {error}") from None
    if len(items) == 1 and isinstance(items[0], InputMessage) and items[0].role == "user":
        return items[0].text
    return "\n".join(item.line for item in items)


def _full_name(namespace: str | None, name: str) -> str:
    return f"{namespace}.{name}" if namespace else name
