"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hanlin.data.processor import ContinuesTexts
from hanlin.generate.prompt_scores import PromptScore, score_prompts_in_steps
from hanlin.generate.running_batch import AnswerRequest
from hanlin.recipe.settings import GenerateSettings

from .answers import respond
from .errors import RequestError, blaming
from .logprobs import joined, of_prompt, of_text, vllm_prompt
from .scheduler import Answered
from .schema import CompletionBody, request_settings
from .service import Service, read_body


async def complete_text(request: Request) -> Response:
    service: Service = request.app.state.service
    body: CompletionBody = await read_body(request, CompletionBody, service.limits)
    service = service.named(body.model)
    settings = request_settings(body, service.settings)
    questions = await asyncio.to_thread(_questions, service, body, settings)
    scores: list[list[PromptScore]] = []
    if (top := body.told_of_prompts) is not None:
        prompts = [question.prompt for question in questions[:: body.n]]
        if (tokens := sum(prompt.size for prompt in prompts)) > (most := service.limits.decision_tokens):
            told = f"the prompts have {tokens:,} tokens, at most {most:,} are scored at once"
            raise RequestError(told, param="prompt", code="too_large")
        scores = await service.run_aside(score_prompts_in_steps(service.engine, prompts, top), request)
    shape = _TextShape(service, body, questions, scores)
    return await respond(request, service, body, questions, shape, num_prompts=len(body.prompts))


def _questions(service: Service, body: CompletionBody, settings: GenerateSettings) -> list[AnswerRequest]:
    """Raises: RequestError, also for a family that does not go on with bare texts."""
    processor = service.processor
    if (rows := len(body.prompts) * body.n) > service.limits.rows:
        told = f"{rows:,} answers are more than this server holds at once ({service.limits.rows}); ask for less"
        raise RequestError(told, param="prompt", code="too_large")
    if not isinstance(processor, ContinuesTexts):
        raise RequestError("this model does not go on with bare texts; ask by /v1/chat/completions", param="prompt")
    with blaming("prompt", "{}; ask by /v1/chat/completions"):
        records = [
            processor.continuation(processor.text_ids(one) if isinstance(one, str) else one) for one in body.prompts
        ]
    return service.questions(body, settings, records, "prompt")


class _TextShape:
    prefix, whole, part = "cmpl", "text_completion", "text_completion"
    is_plain = True

    def __init__(
        self,
        service: Service,
        body: CompletionBody,
        questions: Sequence[AnswerRequest],
        scores: Sequence[Sequence[PromptScore]],
    ) -> None:
        self._service, self._body, self._questions, self._scores = service, body, questions, scores
        self._characters = [0] * len(questions)  # of the tokens that were told of each answer

    def choice(self, end: Answered) -> dict[str, Any]:
        echoed = self.opening(end.number)
        choice = self.piece(end, end.text, 0)
        if echoed is not None:
            choice["text"] = echoed["text"] + choice["text"]
            choice["logprobs"] = joined(echoed["logprobs"], choice["logprobs"])
        if (top := self._body.prompt_logprobs) is not None:
            scores = self._scores[end.number // self._body.n]
            choice["prompt_logprobs"] = vllm_prompt(self._service.tokenizer, scores, top)
        return choice

    def opening(self, number: int) -> dict[str, Any] | None:
        """The prompt, where it is echoed."""
        if not self._body.echo:
            return None
        place, tokenizer = number // self._body.n, self._service.tokenizer
        given = self._body.prompts[place]
        noted = None
        if self._body.logprobs is not None:
            ids = [id for id in self._questions[number].prompt.ids if id >= 0]
            noted = of_prompt(tokenizer, ids, self._scores[place], self._body.logprobs)
            self._characters[number] = sum(map(len, noted["tokens"]))
        text = given if isinstance(given, str) else tokenizer.decode(given)
        return {"index": number, "text": text, "logprobs": noted, "finish_reason": None}

    def piece(self, event: Answered, text: str, told: int) -> dict[str, Any]:
        number, question = event.number, self._questions[event.number]
        noted = of_text(self._service.processor, question, told, len(event.tokens), self._characters[number])
        if noted is not None:
            self._characters[number] += sum(map(len, noted["tokens"]))
        return {"index": number, "text": text, "logprobs": noted, "finish_reason": event.end}
