"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hanlin.api.dialogue import AskedRow, next_message, question
from hanlin.generate.running_batch import AnswerRequest
from hanlin.models.family import CallsTools
from hanlin.recipe.settings import GenerateSettings

from .answers import respond
from .errors import RequestError, blaming
from .logprobs import of_chat
from .scheduler import Answered
from .schema import ChatBody, request_settings
from .service import Service, read_body


async def complete_chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body: ChatBody = await read_body(request, ChatBody, service.limits)
    service = service.named(body.model)
    settings = request_settings(body, service.settings)
    # In a thread: a long dialogue takes a while to be encoded, and other streams go on meanwhile.
    shape = await asyncio.to_thread(_shape, service, body, settings)
    return await respond(request, service, body, shape.questions, shape)


def _shape(service: Service, body: ChatBody, settings: GenerateSettings) -> _ChatShape:
    """Raises: RequestError."""
    names = _tool_names(service, body.offered_tools)
    asked, questions = _questions(service, body, settings)
    return _ChatShape(service, questions, asked, names)


def _questions(
    service: Service, body: ChatBody, settings: GenerateSettings
) -> tuple[AskedRow | None, list[AnswerRequest]]:
    """Of a record, how it was read as well.

    Raises: RequestError.
    """
    if body.record is None:
        if not body.messages:
            raise RequestError("messages: expected at least one, or a record", param="messages")
        with blaming("messages"):
            record = next_message(service.processor, body.messages, body.offered_tools)
        return None, service.questions(body, settings, [record], "messages")
    with blaming("record"):
        asked = question(service.processor, body.record)
    return asked, service.questions(body, settings, [asked.record], "record")


class _ChatShape:
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        service: Service,
        questions: Sequence[AnswerRequest],
        asked: AskedRow | None,
        tools: Sequence[str] = (),
    ) -> None:
        self._service, self.questions, self._asked, self._tools = service, questions, asked, tools
        self.is_plain = asked is None or asked.is_plain
        self._held = [""] * len(questions)  # what may still become a call

    def choice(self, end: Answered) -> dict[str, Any]:
        calls = self._calls(end)
        said = {"role": "assistant", "content": None if calls else end.text, **calls, **self._filled(end)}
        return self._choice(end.number, "message", said, end, 0)

    def opening(self, number: int) -> dict[str, Any]:
        return self._choice(number, "delta", {"role": "assistant", "content": ""})

    def piece(self, event: Answered, text: str, told: int) -> dict[str, Any] | None:
        number, calls = event.number, self._calls(event)
        text, self._held[number] = self._held[number] + text, ""
        if event.end is None and self._tools and self._service.processor.may_become_call(event.text, self._tools):
            self._held[number] = text
            return None
        if calls:
            said: dict[str, Any] = {"tool_calls": [{"index": 0, **calls["tool_calls"][0]}]}
        else:
            said = {"content": text} if text else {}
        return self._choice(number, "delta", {**said, **self._filled(event)}, event, told)

    def _calls(self, event: Answered) -> dict[str, Any]:
        """The tool that an answer calls at its end, if it does."""
        if event.end is None or not self._tools:
            return {}
        if (call := self._service.processor.read_call(event.text, self._tools)) is None:
            return {}
        function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
        id = f"call_{secrets.token_hex(12)}"
        return {"tool_calls": [{"id": id, "type": "function", "function": function}]}

    def _filled(self, event: Answered) -> dict[str, Any]:
        """The record that was asked, with its answers, when they are at their end."""
        if self._asked is None or event.end is None:
            return {}
        processor = self._service.processor
        record = processor.answer(self.questions[event.number].prompt, event.tokens)
        return {"record": self._asked.answered(record, processor)}

    def _choice(
        self, number: int, kind: str, said: dict[str, Any], event: Answered | None = None, told: int = 0
    ) -> dict[str, Any]:
        noted = event and of_chat(self._service.processor, self.questions[number], told, len(event.tokens))
        end = "tool_calls" if "tool_calls" in said else event and event.end
        return {"index": number, kind: said, "logprobs": noted, "finish_reason": end}


def _tool_names(service: Service, tools: Sequence[dict[str, Any]]) -> list[str]:
    """Raises: RequestError."""
    if not tools:
        return []
    if not isinstance(service.processor, CallsTools) or not service.processor.calls_tools:
        raise RequestError("this model calls no tools; describe them in a message", param="tools")
    with blaming("tools", "tools: {}"):
        return service.processor.tool_names(tools)
