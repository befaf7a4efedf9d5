"""What the routes share: the model that is served, and a request on its way through the scheduler."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from hanlin.core.errors import HanlinError
from hanlin.core.json_text import decode_utf8, parse_json
from hanlin.generate.engine import record_stream
from hanlin.generate.method import find_method
from hanlin.generate.running_batch import AnswerRequest

from .errors import RequestError, blaming, failed, first_problem
from .limits import Limits
from .scheduler import Answered, BusyError, Failed, Job, Scheduler
from .side_jobs import SideJob

if TYPE_CHECKING:
    from hanlin.core.batch import Prompt
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import GenerateSettings

    from .schema import ChatBody, CompletionBody

__all__ = ["Reply", "Service", "read_body", "unless_gone"]

_JSON = re.compile(r'application/json\s*(;\s*charset="?utf-?8"?\s*)?', re.IGNORECASE)
_SMALL_BODY = 2**14
"""Bytes that are parsed at once; a larger body in a thread, since the event loop serves all the others meanwhile."""


@dataclass(frozen=True)
class Service:
    """A model that is served. name: as clients call it; settings: of generation where a request says nothing; created:
    when it was loaded, in seconds of the epoch; adapters: the same base with adapters, by the names that clients call
    them by, each with an engine of its own and the scheduler of the base; temperature: of the probabilities of
    decisions; joint: the engine that writes its answers beside those of the base and of others; None: its own; adapter:
    its name there.
    """

    name: str
    engine: Engine
    settings: GenerateSettings
    scheduler: Scheduler
    limits: Limits
    created: int
    adapters: Mapping[str, Service] = field(default_factory=dict)
    temperature: float = 1.0
    joint: Engine | None = None
    adapter: str = ""

    @property
    def processor(self) -> Any:
        return self.engine.processor

    @property
    def tokenizer(self) -> Any:
        """Raises: RequestError."""
        if (found := getattr(self.processor, "tokenizer", None)) is None:
            raise RequestError("the processor of this model's family tells no tokenizer")
        return found

    @property
    def models(self) -> dict[str, Service]:
        """What can be asked for: the base, and each adapter by its own name and by `base:adapter`."""
        full = {f"{self.name}:{name}": service for name, service in self.adapters.items()}
        return {self.name: self, **full, **self.adapters}

    def named(self, name: str | None) -> Service:
        """The model that a request asks for; where it names none, the base.

        Raises: RequestError.
        """
        if name is None:
            return self
        if name not in (models := self.models):
            known = ", ".join(map(repr, models))
            raise RequestError(
                f"there is no model {name!r:.80}; this server has {known}", 404, "model", "model_not_found"
            )
        return models[name]

    def questions(
        self, body: ChatBody | CompletionBody, settings: GenerateSettings, records: Sequence[Any], param: str
    ) -> list[AnswerRequest]:
        """As many answers to each record as a body asks for; param: the field that the records come from.

        Raises: RequestError.
        """
        answers = body.n
        if answers > self.limits.answers:
            raise RequestError(f"n: at most {self.limits.answers} answers at once", param="n")
        if body.noted is not None and find_method(settings).num_beams(settings) > 1:
            raise RequestError(
                "logprobs: answers are searched for with beams here; give a temperature", param="logprobs"
            )
        if body.bias and max(body.bias) >= (size := self.tokenizer.vocab_size):
            raise RequestError(f"logit_bias: {max(body.bias)} is no id, the vocabulary has {size}", param="logit_bias")
        drawn = secrets.randbits(62) if body.seed is None else body.seed
        with blaming(param):
            prompts = [
                self._prompt(record, settings, param, is_stated=body.most_tokens is not None) for record in records
            ]
        return [
            AnswerRequest(
                prompt,
                chosen,
                record_stream(drawn, place * answers + number),
                trace=None if body.noted is None else [],
                top=body.noted or 0,
                bias=body.bias,
                adapter=self.adapter,
                by_token=bool(body.stops),
            )
            for place, (prompt, chosen) in enumerate(prompts)
            for number in range(answers)
        ]

    def _prompt(
        self, record: Any, settings: GenerateSettings, param: str, *, is_stated: bool
    ) -> tuple[Prompt, GenerateSettings]:
        """A record's prompt, and the settings of its answer, which has the room that is left where none is stated.

        Raises: DataError, RequestError.
        """
        limit, most = self.engine.max_length, settings.max_new_tokens
        prompt = self.processor.prompt(record)
        if not self.engine.is_causal and prompt.size > self.limits.prompt_tokens:
            raise RequestError(
                f"the prompt has {prompt.size:,} tokens; this model reads it whole, at most "
                f"{self.limits.prompt_tokens:,} here",
                param=param,
                code="too_large",
            )
        if limit is None or prompt.length + most <= limit:
            return prompt, settings
        if is_stated or prompt.length >= limit:
            raise RequestError(
                f"the prompt has {prompt.length:,} tokens and up to {most:,} may follow, but the model reads at most "
                f"{limit:,}; shorten the prompt or lower max_tokens",
                param=param,
                code="too_large",
            )
        return prompt, settings.model_copy(update={"max_new_tokens": limit - prompt.length})

    async def run_aside(self, steps: Iterator[Any], request: Request, tokens: int = 0) -> Any:
        """What the last of some steps of the model finds, run between those of the answers; tokens: that they read
        and that nobody else counts.

        Raises: RequestError, ClientDisconnect.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[tuple[Any, Exception | None]] = loop.create_future()

        def done(result: Any, error: Exception | None) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: found.done() or found.set_result((result, error)))

        job = SideJob(steps, done, tokens)
        with _busy_told(self.scheduler):
            self.scheduler.submit_aside(job)
        try:
            result, error = await unless_gone(found, request)
        finally:
            job.is_cancelled = True
        if isinstance(error, TimeoutError):
            raise RequestError(str(error), 503, code="timeout")
        if error is not None:
            raise RequestError(str(error), 500) if isinstance(error, HanlinError) else failed(error)
        return result

    @asynccontextmanager
    async def answering(
        self,
        questions: Sequence[AnswerRequest],
        stops: Sequence[str],
        *,
        is_streamed: bool,
        is_empty: bool = False,
        is_plain: bool = True,
    ) -> AsyncIterator[Reply]:
        """A request in the queue, until this block is left: then nobody waits for it.

        is_empty: the answers have no tokens, and are there at once; is_plain: see `Job`.
        Raises: RequestError.
        """
        if len(stops) > self.limits.stops:
            raise RequestError(f"stop: at most {self.limits.stops} texts", param="stop")
        reply = Reply(asyncio.get_running_loop())
        if is_empty:
            for number in range(len(questions)):
                reply.tell(Answered(number, (), "", "length"))
            yield reply
            return
        job = Job(questions, reply.tell, tuple(stops), is_streamed, self.joint or self.engine, is_plain)
        with _busy_told(self.scheduler):
            self.scheduler.submit(job)
        try:
            yield reply
        finally:
            self.scheduler.cancel(job)


class Reply:
    """What the scheduler tells of a request, in this thread's event loop. Of each answer the newest word alone is kept
    until it is read, which has all of those before: who reads slowly takes no more memory.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unread: dict[int | None, Answered | Failed] = {}  # by answer; None: of the request
        self._is_told = asyncio.Event()

    def tell(self, event: Answered | Failed) -> None:
        """Called by the scheduler's thread."""
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._keep, event)

    def _keep(self, event: Answered | Failed) -> None:
        self._unread[event.number if isinstance(event, Answered) else None] = event
        self._is_told.set()

    async def next(self) -> Answered:
        """Raises: RequestError where there is no answer."""
        while not self._unread:
            self._is_told.clear()
            await self._is_told.wait()
        event = self._unread.pop(next(iter(self._unread)))
        if isinstance(event, Failed):
            status = 503 if event.is_late else 500 if event.is_ours else 400
            raise RequestError(event.message, status, code="timeout" if event.is_late else None)
        return event

    async def ends(self, count: int) -> list[Answered]:
        """The answers of so many questions, in their order.

        Raises: RequestError where there is no answer.
        """
        found: dict[int, Answered] = {}
        while len(found) < count:
            if (event := await self.next()).end is not None:
                found[event.number] = event
        return [found[number] for number in range(count)]


async def read_body(request: Request, form: type[BaseModel], limits: Limits) -> Any:
    """The body as `form`.

    Raises: RequestError.
    """
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise RequestError(f"content-encoding {encoding!r:.40}: bodies are read as they are; send it unpacked", 415)
    if (kind := request.headers.get("content-type")) and not _JSON.fullmatch(kind):
        raise RequestError(f"content-type {kind!r:.80}: expected application/json, in UTF-8", 415)
    size, pieces = 0, []
    try:
        async with asyncio.timeout(limits.wait_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body_bytes:
                    raise RequestError(f"the body is larger than {limits.body_bytes:,} bytes", 413)
                pieces.append(piece)
    except TimeoutError:
        told = f"the body did not come within {limits.wait_seconds:g} seconds"
        raise RequestError(told, 408, code="timeout") from None
    body, most = b"".join(pieces), limits.text_characters
    return _parsed(form, body, most) if size < _SMALL_BODY else await asyncio.to_thread(_parsed, form, body, most)


def _parsed(form: type[BaseModel], body: bytes, most: int) -> Any:
    """most: characters of its texts, which take a tokenizer long.

    Raises: RequestError.
    """
    try:
        value = parse_json(decode_utf8(body))
        if len(body) > most and (count := _count_characters(value)) > most:
            raise RequestError(f"its texts have {count:,} characters, at most {most:,} are read", code="too_large")
        return form.model_validate(value)
    except ValidationError as error:
        raise first_problem(error.errors(include_url=False)) from None
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}", code="invalid_json") from None


def _count_characters(value: Any) -> int:
    """Of the texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_count_characters, inside))


def timestamp() -> int:
    return int(time.time())


@contextmanager
def _busy_told(scheduler: Scheduler) -> Iterator[None]:
    """Raises: RequestError for what the scheduler does not take."""
    try:
        yield
    except BusyError as error:
        raise RequestError(str(error), 503 if not scheduler.is_alive else 429, code="busy") from None
    except HanlinError as error:
        raise RequestError(str(error), code="too_large") from None


async def unless_gone(awaitable: Awaitable[Any], request: Request) -> Any:
    """What is awaited, while it is seen whether anybody is still there.

    Raises: ClientDisconnect where nobody waits any more; what is raised there.
    """
    awaited = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({awaited, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not awaited.done():
        awaited.cancel()
        raise ClientDisconnect
    return awaited.result()


async def _disconnected(request: Request) -> None:
    """The body is read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
