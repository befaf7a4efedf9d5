"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hanlin.api.dialogue import AskedRow, question
from hanlin.core.errors import HanlinError
from hanlin.data.forms.content import Conversation
from hanlin.data.forms.messages import FORM
from hanlin.data.processor import TakesForms
from hanlin.generate.running_batch import AnswerRequest
from hanlin.recipe.settings import GenerateSettings

from .answers import respond
from .errors import RequestError
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
    asked, questions = await asyncio.to_thread(_questions, service, body, settings)
    return await respond(request, service, body, questions, _ChatShape(service, questions, asked))


def _questions(
    service: Service, body: ChatBody, settings: GenerateSettings
) -> tuple[AskedRow | None, list[AnswerRequest]]:
    """Of a record, how it was read as well.

    Raises: RequestError.
    """
    if body.record is None:
        if not body.messages:
            raise RequestError("messages: expected at least one, or a record", param="messages")
        return None, service.questions(body, settings, [record_of_messages(service, body.messages)], "messages")
    try:
        asked = question(service.processor, body.record)
    except HanlinError as error:
        raise RequestError(str(error), param="record") from None
    return asked, service.questions(body, settings, [asked.record], "record")


class _ChatShape:
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, questions: Sequence[AnswerRequest], asked: AskedRow | None) -> None:
        self._service, self._questions, self._asked = service, questions, asked

    def choice(self, end: Answered) -> dict[str, Any]:
        said = {"role": "assistant", "content": end.text, **self._filled(end)}
        return self._choice(end.number, "message", said, end, 0)

    def opening(self, number: int) -> dict[str, Any]:
        return self._choice(number, "delta", {"role": "assistant", "content": ""})

    def piece(self, event: Answered, text: str, told: int) -> dict[str, Any]:
        said = {**({"content": text} if text else {}), **self._filled(event)}
        return self._choice(event.number, "delta", said, event, told)

    def _filled(self, event: Answered) -> dict[str, Any]:
        """The record that was asked, with its answers, when they are at their end."""
        if self._asked is None or event.end is None:
            return {}
        processor = self._service.processor
        record = processor.answer(self._questions[event.number].prompt, event.tokens)
        return {"record": self._asked.answered(record, processor)}

    def _choice(
        self, number: int, kind: str, said: dict[str, Any], event: Answered | None = None, told: int = 0
    ) -> dict[str, Any]:
        noted = event and of_chat(self._service.processor, self._questions[number], told, len(event.tokens))
        return {"index": number, kind: said, "logprobs": noted, "finish_reason": event and event.end}


def record_of_messages(service: Service, messages: Sequence[dict[str, Any]]) -> Any:
    """The family's record of a dialogue that waits for the assistant's next message.

    Raises: RequestError naming the message.
    """
    if not isinstance(service.processor, TakesForms):
        raise RequestError("this model reads records of its own form alone, no messages", param="messages")
    try:
        dialogue = FORM.read({"messages": messages})
        assert isinstance(dialogue, Conversation), dialogue
        if dialogue.is_answered:
            raise RequestError("messages: the last one is the assistant's; nothing is asked", param="messages")
        return service.processor.record_of(dialogue)
    except HanlinError as error:
        raise RequestError(str(error), param="messages") from None
