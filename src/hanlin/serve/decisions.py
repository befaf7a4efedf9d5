"""POST /v1/decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import Field, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanlin.evaluation.decisions.answers import answer_of, probabilities_of
from hanlin.evaluation.decisions.asking import Poll, poll_of_question, spoken_options
from hanlin.evaluation.decisions.inputs import DecisionInput, text_of_input
from hanlin.evaluation.decisions.questions import MOST_QUESTIONS, Question, Unread, WireModel
from hanlin.evaluation.decisions.scoring import OptionScores, scored_in_steps
from hanlin.models.family import PredictsLabels

from .errors import RequestError, blaming
from .service import Service, read_body

_MOST_CHARACTERS = 4
"""For each token that a request's decisions may read."""


class DecisionBody(WireModel):
    """prompt_cache_key, safety_identifier: taken, and not used: nothing is kept."""

    model: StrictStr | None = None
    input: DecisionInput
    questions: tuple[Question, ...] = Field(min_length=1, max_length=MOST_QUESTIONS)
    prompt_cache_key: StrictStr | None = None
    prompt_cache_options: Unread = None
    safety_identifier: StrictStr | None = None


async def decide(request: Request) -> Response:
    service: Service = request.app.state.service
    body: DecisionBody = await read_body(request, DecisionBody, service.limits)
    service = service.named(body.model)
    # In a thread: many options of a long text take a while to be encoded.
    polls = await asyncio.to_thread(_polls, service, body)
    steps = scored_in_steps(service.engine, polls, service.settings.batch_size, service.limits.step_tokens)
    read = sum(poll.num_tokens for poll in polls)
    scored = await service.run_aside(steps, request, read)
    return await asyncio.to_thread(_response, service, body, scored, read)


def _response(service: Service, body: DecisionBody, scored: Sequence[OptionScores], read: int) -> Response:
    """read: tokens."""
    chances = [probabilities_of(scores, service.temperature) for scores in scored]
    usage = {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read,
    }
    answers = [answer_of(question, own) for question, own in zip(body.questions, chances, strict=True)]
    return JSONResponse({"model": service.name, "answers": answers, "usage": usage})


def _polls(service: Service, body: DecisionBody) -> list[Poll]:
    """Raises: RequestError naming the question."""
    with blaming("input"):
        text = text_of_input(body.input)
    polls, limit = [], service.limits.decision_tokens
    characters, has_labels = 0, isinstance(service.processor, PredictsLabels)
    for number, question in enumerate(body.questions):
        times = 1 if has_labels else len(spoken_options(question))
        characters += times * (len(text) + len(question.asked))
        if characters > (most := _MOST_CHARACTERS * limit):  # so that nobody waits for a tokenizer
            raise RequestError(
                f"more than {most:,} characters are to be read, the input once for each option; ask less at once",
                param=f"questions.{number}",
                code="too_large",
            )
        with blaming(f"questions.{number}", f"questions.{number}: {{}}"):
            polls.append(poll_of_question(service.processor, question, text, service.engine.max_length))
        longest = max(sample.length for sample in polls[-1].samples)
        if not service.engine.is_causal and longest > (most := service.limits.prompt_tokens):
            raise RequestError(
                f"an option has {longest:,} tokens with the input; this model reads them whole, at most {most:,} here",
                param=f"questions.{number}",
                code="too_large",
            )
        if sum(poll.num_tokens for poll in polls) > limit:
            raise RequestError(
                f"more than {limit:,} tokens are to be read, the input once for each option; ask less at once",
                param=f"questions.{number}",
                code="too_large",
            )
    return polls
