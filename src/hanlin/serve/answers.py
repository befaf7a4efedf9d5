"""Questions on their way to a response, whole or as server-sent events: what both routes of answers have in common."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from hanlin.generate.running_batch import AnswerRequest
from hanlin.tokens.stream import Pieces

from .errors import RequestError, failed
from .scheduler import Answered
from .schema import ChatBody, CompletionBody
from .service import Reply, Service, timestamp, unless_gone

__all__ = ["Shape", "respond"]

log = logging.getLogger(__name__)

_FEW_TOKENS = 16
"""That are told at once; more of them, or a whole record, in a thread."""
_QUIET_SECONDS = 10.0
"""So long a silent stream lasts before a comment says that it is alive."""


class Shape(Protocol):
    """How a route writes answers; much of them in a thread, little in the event loop.

    prefix: of their id; whole, part: what a response and a piece of it are called; is_plain: their texts are as people
    read them, not as the family's records have them.
    """

    prefix: str
    whole: str
    part: str
    is_plain: bool

    def choice(self, end: Answered) -> dict[str, Any]:
        """An answer at its end."""
        ...

    def opening(self, number: int) -> dict[str, Any] | None:
        """What comes before the first piece of an answer, if anything."""
        ...

    def piece(self, event: Answered, text: str, told: int) -> dict[str, Any] | None:
        """What is new of an answer: its text, and its tokens behind the first `told`; None: it is not told yet."""
        ...


async def respond(
    request: Request,
    service: Service,
    body: ChatBody | CompletionBody,
    questions: Sequence[AnswerRequest],
    shape: Shape,
    *,
    num_prompts: int = 1,
) -> Response:
    """The answers to questions, `body.n` of which belong to each prompt.

    Raises: RequestError; in the middle of a stream it is an event.
    """
    head = {
        "id": f"{shape.prefix}-{secrets.token_hex(12)}",
        "created": timestamp(),
        "model": body.model or service.name,
    }
    how = {"is_streamed": body.stream, "is_empty": body.most_tokens == 0, "is_plain": shape.is_plain}
    if not body.stream:
        async with service.answering(questions, body.stops, **how) as reply:
            ends = await unless_gone(reply.ends(len(questions)), request)

        def whole() -> Response:
            choices = [shape.choice(end) for end in ends]
            usage = _usage(questions, ends, num_prompts)
            return JSONResponse({**head, "object": shape.whole, "choices": choices, "usage": usage})

        return await asyncio.to_thread(whole)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    head = {**head, "object": shape.part, **({"usage": None} if with_usage else {})}
    context = service.answering(questions, body.stops, **how)
    reply = await context.__aenter__()

    async def events() -> AsyncIterator[bytes]:
        ends: dict[int, Answered] = {}
        try:
            async for choice in _choices(reply, len(questions), body.stops, shape, ends):
                yield b": waiting\n\n" if choice is None else _event({**head, "choices": [choice]})
            if with_usage:
                in_order = [ends[number] for number in range(len(questions))]
                yield _event({**head, "choices": [], "usage": _usage(questions, in_order, num_prompts)})
        except RequestError as error:
            yield _event(error.body)
        except Exception as error:
            log.error("a piece of an answer could not be told", exc_info=error)
            yield _event(failed(error).body)
        finally:
            await context.__aexit__(None, None, None)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _choices(
    reply: Reply, count: int, stops: Sequence[str], shape: Shape, ends: dict[int, Answered]
) -> AsyncIterator[dict[str, Any] | None]:
    """The pieces of all answers as they come, None after a silence; `ends` is filled on the way."""
    pieces, told = [Pieces(stops) for _ in range(count)], [0] * count
    for first in await asyncio.to_thread(lambda: [shape.opening(number) for number in range(count)]):
        if first is not None:
            yield first
    while len(ends) < count:
        try:
            event = await asyncio.wait_for(reply.next(), _QUIET_SECONDS)
        except TimeoutError:
            yield None
            continue
        text = pieces[event.number].add(event.text, is_last=event.end is not None)
        if event.end is not None:
            ends[event.number] = event
        if not text and event.end is None:
            continue
        is_small = event.end is None and len(event.tokens) - told[event.number] < _FEW_TOKENS
        tell = partial(shape.piece, event, text, told[event.number])
        if (piece := tell() if is_small else await asyncio.to_thread(tell)) is not None:
            yield piece
            told[event.number] = len(event.tokens)


def _usage(questions: Sequence[AnswerRequest], ends: Sequence[Answered], num_prompts: int) -> dict[str, int]:
    """Each prompt is counted once, whatever the number of its answers."""
    read = sum(question.prompt.size + 1 for question in questions[:: len(questions) // num_prompts])
    written = sum(len(end.tokens) for end in ends)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
