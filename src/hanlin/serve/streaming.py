"""Answers as server-sent events, a piece at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse

from hanlin.generate.running_batch import AnswerRequest
from hanlin.tokens.stream import Pieces

from .errors import RequestError
from .scheduler import Answered
from .service import Reply, Service

__all__ = ["Events", "event_stream"]

_QUIET_SECONDS = 10.0
"""So long a silent stream lasts before a comment says that it is alive."""


@dataclass(frozen=True)
class Events:
    """What is written of answers. chunk: of the text that is new, of how many tokens was told before, and where the
    answer stands; ending: of all answers, a last chunk, if any; opening: what comes before the first text.
    """

    chunk: Callable[[str, int, Answered], dict[str, Any]]
    ending: Callable[[Sequence[Answered]], dict[str, Any] | None]
    opening: Sequence[dict[str, Any]] = ()


async def event_stream(
    service: Service, questions: Sequence[AnswerRequest], stops: Sequence[str], events: Events
) -> StreamingResponse:
    """Raises: RequestError before the first event."""
    context = service.answering(questions, stops, is_streamed=True)
    reply = await context.__aenter__()

    async def written() -> AsyncIterator[bytes]:
        try:
            async for event in _events(reply, len(questions), stops, events):
                yield event
        except RequestError as error:
            yield _event(error.body)
        finally:
            await context.__aexit__(None, None, None)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(written(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _events(reply: Reply, count: int, stops: Sequence[str], events: Events) -> AsyncIterator[bytes]:
    pieces = [Pieces(stops) for _ in range(count)]
    ended: dict[int, Answered] = {}
    tokens = [0] * count
    for first in events.opening:
        yield _event(first)
    while len(ended) < count:
        try:
            told = await asyncio.wait_for(reply.next(), _QUIET_SECONDS)
        except TimeoutError:
            yield b": waiting\n\n"
            continue
        text = pieces[told.number].add(told.text, is_last=told.end is not None)
        if told.end is not None:
            ended[told.number] = told
        if text or told.end is not None:
            yield _event(events.chunk(text, tokens[told.number], told))
            tokens[told.number] = len(told.tokens)
    if (last := events.ending([ended[number] for number in range(count)])) is not None:
        yield _event(last)


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
