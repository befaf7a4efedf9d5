"""The bodies of requests: each field is honoured, or refused with the reason; none is ignored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from hanlin.api.generation import requested
from hanlin.core.field_problems import FieldError

from .errors import first_problem

if TYPE_CHECKING:
    from hanlin.recipe.settings import GenerateSettings

_SETTINGS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)

__all__ = ["ChatBody", "CompletionBody", "StreamOptions", "request_settings"]

Number = StrictInt | StrictFloat


def _id(value: str) -> str:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", value):
        raise ValueError("expected the number of a token as a text, without zeros before it")
    return value


_Id = Annotated[str, AfterValidator(_id)]


def _not_yet(reason: str) -> BeforeValidator:
    """A field that may be absent or null alone."""

    def refuse(value: Any) -> Any:
        if value is not None:
            raise ValueError(reason)
        return None

    return BeforeValidator(refuse)


def only(*values: Any) -> BeforeValidator:
    """A field that may say what is so anyway."""

    def check(value: Any) -> Any:
        if value is None or any(value == allowed and type(value) is type(allowed) for allowed in values):
            return value
        raise ValueError(f"only {' or '.join(map(repr, values))} is possible")

    return BeforeValidator(check)


def _prompts(value: Any) -> Any:
    """A text or several, the ids of one's tokens, or those of several."""
    several = value if isinstance(value, list) else [value]
    if several and all(isinstance(one, str) for one in several):
        return value
    ids = several if all(isinstance(one, list) for one in several) else [value]
    if ids and all(isinstance(one, list) and one and all(map(_is_id, one)) for one in ids):
        return value
    raise ValueError("expected a text or several, or the ids of tokens: a list of them, or several lists; none empty")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _text_alone(value: Any) -> Any:
    if value not in (None, {"type": "text"}):
        raise ValueError(
            "only texts: nothing here makes an answer follow a schema; say in a message which JSON is wanted"
        )
    return value


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False
    include_obfuscation: Annotated[Any, only(False)] = None


class _Body(BaseModel):
    """What both routes have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    max_tokens: Annotated[StrictInt, Field(gt=0, le=2**24)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=1, le=10)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(gt=0, le=128)] = 1
    stop: str | list[str] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[_Id, Annotated[Number, Field(ge=-100, le=100)]] | None = None

    @property
    def bias(self) -> dict[int, float]:
        """What is added to the logits, by id."""
        return {int(id): float(value) for id, value in (self.logit_bias or {}).items()}

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @model_validator(mode="after")
    def _agree(self) -> _Body:
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "has an effect with stream: true only")
        if any(not stop for stop in self.stops):
            raise FieldError("stop", "an empty text would end every answer at once")
        return self


class ChatBody(_Body):
    """POST /v1/chat/completions. record: of the model's own form or any that `hanlin generate` reads, in place of
    messages.
    """

    messages: list[dict[str, Any]] | None = None
    record: dict[str, Any] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(gt=0, le=2**24)] | None = None
    response_format: Annotated[Any, BeforeValidator(_text_alone)] = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, min_length=1, max_length=128)
    tool_choice: Annotated[Any, only("auto", "none")] = None
    # An answer calls one tool at most, so both hold.
    parallel_tool_calls: StrictBool | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """Those that an answer may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def noted(self) -> int | None:
        """So many likeliest tokens are told beside each; None: nothing is told of tokens."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatBody:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise FieldError("max_tokens", "differs from max_completion_tokens; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "has an effect with logprobs: true only")
        return self

    @model_validator(mode="after")
    def _one_question(self) -> ChatBody:
        if self.record is not None and (self.messages or self.stops or self.tools):
            raise FieldError("record", "is asked without messages and tools, and its answers end without stop")
        if self.tool_choice == "auto" and not self.tools:
            raise FieldError("tool_choice", "has an effect with tools only")
        return self


class CompletionBody(_Body):
    """POST /v1/completions. prompt_logprobs: the likeliest tokens that are told beside each of the prompt (vLLM)."""

    prompt: Annotated[Any, AfterValidator(_prompts)]
    max_tokens: Annotated[StrictInt, Field(ge=0, le=2**24)] | None = None
    echo: StrictBool | None = None
    prompt_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    suffix: Annotated[Any, _not_yet("these models fill in no middle by a suffix")] = None
    best_of: Annotated[Any, only(1)] = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def noted(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each a text, or the ids of its tokens."""
        several: Any = self.prompt
        return [several] if isinstance(several, str) or isinstance(several[0], int) else several

    @property
    def told_of_prompts(self) -> int | None:
        """So many likeliest tokens are told beside each of a prompt; None: nothing is told of them."""
        told = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in told if count is not None), default=None)

    @model_validator(mode="after")
    def _has_something_to_tell(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise FieldError("max_tokens", "0 tells nothing without echo or prompt_logprobs")
        if self.stream and self.prompt_logprobs is not None:
            raise FieldError("prompt_logprobs", "are told at once; leave stream out")
        return self


def request_settings(body: ChatBody | CompletionBody, default: GenerateSettings) -> GenerateSettings:
    """How the answer is looked for: what the body says, else what the server was started with.

    Raises: RequestError.
    """
    said = {name: value for name in _SETTINGS if (value := getattr(body, name)) is not None}
    if body.most_tokens is not None:
        said["max_new_tokens"] = max(1, body.most_tokens)
    try:
        return requested(default, said, num_answers=body.n)
    except ValidationError as error:
        raise first_problem(error.errors()) from None
