"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanlin.core.errors import HanlinError
from hanlin.data.forms.content import Conversation
from hanlin.data.forms.messages import FORM
from hanlin.data.processor import TakesForms

from .errors import RequestError
from .fields import ChatBody, generate_settings
from .likelihoods import of_chat
from .scheduler import Answered
from .service import Service, read_body, timestamp
from .streaming import Events, event_stream
from .usage import usage_of


async def complete_chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body: ChatBody = await read_body(request, ChatBody, service.limits)
    service.check_model(body.model)
    settings = generate_settings(body, service.settings)
    record = dialogue_record(service, body.messages)
    questions = service.questions(body, settings, [record], "messages")
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": timestamp(), "model": service.name}
    if not body.stream:
        async with service.answering(questions, body.stops, is_streamed=False) as reply:
            ends = await reply.ends(len(questions), request)
        choices = [
            {
                "index": end.number,
                "message": {"role": "assistant", "content": end.text},
                "logprobs": of_chat(service.processor, question, 0, len(end.tokens)),
                "finish_reason": end.end,
            }
            for end, question in zip(ends, questions, strict=True)
        ]
        usage = usage_of(questions, ends, 1)
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})
    head["object"] = "chat.completion.chunk"
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    empty = {"usage": None} if with_usage else {}

    def chunk(text: str, told: int, event: Answered) -> dict[str, Any]:
        noted = of_chat(service.processor, questions[event.number], told, len(event.tokens))
        delta = {"content": text} if text else {}
        choice = {"index": event.number, "delta": delta, "logprobs": noted, "finish_reason": event.end}
        return {**head, "choices": [choice], **empty}

    def ending(ends: Sequence[Answered]) -> dict[str, Any] | None:
        return {**head, "choices": [], "usage": usage_of(questions, ends, 1)} if with_usage else None

    opening = [
        {
            **head,
            "choices": [
                {
                    "index": number,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            ],
            **empty,
        }
        for number in range(body.n)
    ]
    return await event_stream(service, questions, body.stops, Events(chunk, ending, opening))


def dialogue_record(service: Service, messages: Sequence[dict[str, Any]]) -> Any:
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
