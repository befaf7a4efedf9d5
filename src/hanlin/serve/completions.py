"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hanlin.core.errors import HanlinError
from hanlin.data.forms.content import PlainText
from hanlin.data.processor import TakesForms
from hanlin.generate.running_batch import AnswerRequest
from hanlin.recipe.settings import GenerateSettings

from .answers import respond
from .errors import RequestError
from .logprobs import of_text
from .scheduler import Answered
from .schema import CompletionBody, request_settings
from .service import Service, read_body


async def complete_text(request: Request) -> Response:
    service: Service = request.app.state.service
    body: CompletionBody = await read_body(request, CompletionBody, service.limits)
    service = service.named(body.model)
    if not body.prompts:
        raise RequestError("prompt: expected a text or several", param="prompt")
    settings = request_settings(body, service.settings)
    questions = await asyncio.to_thread(_questions, service, body, settings)
    return await respond(
        request, service, body, questions, _TextShape(service, questions), num_prompts=len(body.prompts)
    )


def _questions(service: Service, body: CompletionBody, settings: GenerateSettings) -> list[AnswerRequest]:
    """Raises: RequestError, also for a family that does not go on with bare texts."""
    processor = service.processor
    if not isinstance(processor, TakesForms):
        raise RequestError("this model reads records of its own form alone, no texts", param="prompt")
    try:
        records = [processor.record_of(PlainText(text)) for text in body.prompts]
    except HanlinError as error:
        raise RequestError(f"{error}; ask by /v1/chat/completions", param="prompt") from None
    try:
        return service.questions(body, settings, records, "prompt")
    except RequestError as error:
        hint = "; or ask by /v1/chat/completions" if error.param == "prompt" else ""
        raise RequestError(f"{error.message}{hint}", error.status, error.param, error.code) from None


class _TextShape:
    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, service: Service, questions: Sequence[AnswerRequest]) -> None:
        self._service, self._questions = service, questions
        self._characters = [0] * len(questions)  # of the tokens that were told of each answer

    def choice(self, end: Answered) -> dict[str, Any]:
        return self.piece(end, end.text, 0)

    def opening(self, number: int) -> None:
        return None

    def piece(self, event: Answered, text: str, told: int) -> dict[str, Any]:
        number, question = event.number, self._questions[event.number]
        noted = of_text(self._service.processor, question, told, len(event.tokens), self._characters[number])
        if noted is not None:
            self._characters[number] += sum(map(len, noted["tokens"]))
        return {"index": number, "text": text, "logprobs": noted, "finish_reason": event.end}
