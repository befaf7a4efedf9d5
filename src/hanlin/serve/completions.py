"""POST /v1/completions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanlin.core.errors import HanlinError
from hanlin.data.forms.content import PlainText
from hanlin.data.processor import TakesForms

from .errors import RequestError
from .fields import CompletionBody, generate_settings
from .likelihoods import of_text
from .scheduler import Answered
from .service import Service, read_body, timestamp
from .streaming import Events, event_stream
from .usage import usage_of


async def complete_text(request: Request) -> Response:
    service: Service = request.app.state.service
    body: CompletionBody = await read_body(request, CompletionBody, service.limits)
    service.check_model(body.model)
    if not body.prompts:
        raise RequestError("prompt: expected a text or several", param="prompt")
    settings = generate_settings(body, service.settings)
    records = [_record(service, text) for text in body.prompts]
    questions = service.questions(body, settings, records, "prompt")
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": timestamp(),
        "model": service.name,
    }

    def choice(text: str, told: int, event: Answered) -> dict[str, Any]:
        noted = of_text(service.processor, questions[event.number], told, len(event.tokens))
        return {"index": event.number, "text": text, "logprobs": noted, "finish_reason": event.end}

    if not body.stream:
        async with service.answering(questions, body.stops, is_streamed=False) as reply:
            ends = await reply.ends(len(questions), request)
        choices = [choice(end.text, 0, end) for end in ends]
        return JSONResponse({**head, "choices": choices, "usage": usage_of(questions, ends, len(records))})
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    empty = {"usage": None} if with_usage else {}

    def chunk(text: str, told: int, event: Answered) -> dict[str, Any]:
        return {**head, "choices": [choice(text, told, event)], **empty}

    def ending(ends: Sequence[Answered]) -> dict[str, Any] | None:
        return {**head, "choices": [], "usage": usage_of(questions, ends, len(records))} if with_usage else None

    return await event_stream(service, questions, body.stops, Events(chunk, ending))


def _record(service: Service, text: str) -> Any:
    """The family's record of a text that is to be gone on with.

    Raises: RequestError.
    """
    if not isinstance(service.processor, TakesForms):
        raise RequestError("this model reads records of its own form alone, no texts", param="prompt")
    try:
        record = service.processor.record_of(PlainText(text))
        service.engine.processor.prompt(record)  # some families learn texts, but have to be asked something
        return record
    except HanlinError as error:
        raise RequestError(f"{error}; ask by /v1/chat/completions", param="prompt") from None
