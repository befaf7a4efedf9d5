"""What goes wrong, in the shape in which OpenAI's clients read it, on every route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse

from hanlin.core.errors import HanlinError
from hanlin.core.field_problems import first_field_problem
from hanlin.evaluation.decisions.questions import TAGS

__all__ = ["RequestError", "blaming", "error_response", "failed", "first_problem"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that cannot be answered. param: the field that is wrong; code: a word for programs."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@contextmanager
def blaming(param: str, told: str = "{}") -> Iterator[None]:
    """What cannot be made of a field is the request's mistake; told: how its reason is said.

    Raises: RequestError naming the field.
    """
    try:
        yield
    except HanlinError as error:
        raise RequestError(told.format(error), param=param) from None


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    retry = {"retry-after": "1"} if error.status in (429, 503) else {}
    return JSONResponse(error.body, error.status, headers={**retry, **(headers or {})})


def failed(error: Exception) -> RequestError:
    """What a client is told of a fault of ours: no more than it can use."""
    return RequestError(f"the server failed: {type(error).__name__}", 500)


def first_problem(problems: Sequence[Mapping[str, Any]]) -> RequestError:
    """The first of what pydantic found wrong."""
    field, message, code = first_field_problem(problems, TAGS)
    return RequestError(message, param=field or None, code=code)
