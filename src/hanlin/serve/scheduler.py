"""One thread that runs the model: requests wait in a queue, join the running batch, and leave it when they are done.

What happens to a request is told to its `Listener` from that thread. An error is told to the request that brings it,
found by computing each alone where several were computed together (`generate.blame`); only one that is found nowhere
else fails all that an engine was answering. Several engines (of adapters that are not answered in one pass) take
turns: each writes a token of each of its answers before the next one does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

from hanlin.core.errors import HanlinError, traceback_of
from hanlin.core.memory import is_device_failure
from hanlin.generate.answer_text import follow_text
from hanlin.generate.beam import Search
from hanlin.generate.engine import Engine
from hanlin.generate.method import find_method
from hanlin.generate.running_batch import AnswerRequest, BatchLimits, RunningBatch
from hanlin.layers.slot_cache import Budget

from .errors import failed
from .limits import Limits
from .side_jobs import SideJob, SideJobs

__all__ = ["Answered", "BusyError", "Failed", "Job", "Scheduler", "ServerCounts"]

log = logging.getLogger(__name__)

EndReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Answered:
    """How far an answer of a job is. number: which of its answers; text: all of it so far; end: why it is at its end,
    None where it goes on.
    """

    number: int
    tokens: tuple[int, ...]
    text: str
    end: EndReason | None = None


@dataclass(frozen=True)
class Failed:
    """Why a job has no answer; is_ours: the server's fault, not the request's; is_late: it waited too long."""

    message: str
    is_ours: bool = False
    is_late: bool = False


Listener = Callable[[Answered | Failed], None]


class BusyError(HanlinError):
    """Too many requests wait."""


@dataclass(eq=False)
class Job:
    """A request: questions that are answered beside each other.

    stops: texts that end an answer, and are not part of it; is_streamed: every step is told, else the ends alone;
    engine: that answers, None: the scheduler's own; is_plain: texts are as people read them, not as records have them.
    """

    questions: Sequence[AnswerRequest]
    listener: Listener
    stops: Sequence[str] = ()
    is_streamed: bool = False
    engine: Engine | None = None
    is_plain: bool = True
    submitted: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False
    first_token: float = 0.0


@dataclass
class ServerCounts:
    """Counted since the start, and what is going on now."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    between_tokens_seconds: float = 0.0
    between_tokens: int = 0
    queue_seconds: float = 0.0
    begun: int = 0
    waiting: int = 0
    running: int = 0
    cache_positions: int = 0


class _Running(NamedTuple):
    """An answer that is being written: of which job, which one; text: of its tokens."""

    job: Job
    place: int
    text: Callable[[Sequence[int]], str]


class Scheduler:
    """Answers jobs with an engine, or with others that jobs name, from `start` to `close`."""

    def __init__(self, engine: Engine, limits: Limits, on_lost: Callable[[], object] = lambda: None) -> None:
        """on_lost: called when the device has failed: nothing is answered any more, and nothing taken."""
        self.engine, self.limits = engine, limits
        self.counts = ServerCounts()
        self._waiting: deque[Job] = deque()
        self._running: dict[int, _Running] = {}
        self._budget = Budget(limits.cache_tokens)
        self._batches: dict[Engine, RunningBatch] = {}
        self._aside = SideJobs(self.counts, self._see_device)
        self._numbers = count()
        self._changed = threading.Condition()
        self._is_closing = False
        self.is_lost, self._on_lost = False, on_lost
        self._end: float | None = None
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Take no more jobs, and end those that are here, so far as the time allows."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def end_by(self, moment: float) -> None:
        """Fail what is not answered until then (of `time.monotonic`)."""
        self._end = moment

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._running or self._aside)

    @property
    def is_running(self) -> bool:
        """Whether its thread is there, and may be in the middle of a step."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises: BusyError; HanlinError where it would never fit.
        """
        rows, positions = num_rows(job.questions), self._batch_of(job).cost(job.questions)
        if rows > self.limits.rows or positions > self.limits.cache_tokens:
            raise HanlinError(
                f"{rows} answers that take {positions} tokens with their prompts are more than this server holds at "
                f"once ({self.limits.rows} answers, {self.limits.cache_tokens} tokens in all); ask for less"
            )
        with self._changed:
            if not self.is_alive:
                raise BusyError("the server is shutting down")
            if len(self._waiting) >= self.limits.queue:
                self.counts.refused += 1
                raise BusyError(f"{len(self._waiting)} requests are waiting; try again later")
            self._waiting.append(job)
            self.counts.requests += 1
            self._changed.notify()

    def submit_aside(self, job: SideJob) -> None:
        """Let other work of the model be done step by step beside the answers.

        Raises: BusyError.
        """
        with self._changed:
            if not self.is_alive:
                raise BusyError("the server is shutting down")
            if len(self._aside) >= self.limits.queue:
                self.counts.refused += 1
                raise BusyError(f"{len(self._aside)} requests are waiting; try again later")
            self._aside.add(job)
            self.counts.requests += 1
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more; it has left the batch after the step that runs now."""
        with self._changed:
            job.is_cancelled = True
            self._changed.notify()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closing and not self.is_lost

    # --- the thread ---

    def _run(self) -> None:
        while self._wait():
            try:
                self._leave()
                self._admit()
            except Exception as error:
                self._begin_anew(error, list(self._batches))
            for engine, batch in list(self._batches.items()):
                try:
                    if not batch.is_empty:
                        self._step(engine, batch)
                except Exception as error:
                    self._begin_anew(error, [engine])
            self._aside.step(self.limits.request_seconds)
            self._count()

    def _begin_anew(self, error: Exception, engines: Sequence[Engine]) -> None:
        """All that these engines answer fails, and what comes next finds an empty batch: nothing ends the thread. For
        what no single request is guilty of.
        """
        log.error("the answers that were being written failed: %s", error, exc_info=traceback_of(error))
        jobs = {one.job for one in self._running.values() if self._engine_of(one.job) in engines}
        for engine in engines:
            self._batches.pop(engine).close()
        for job in jobs:
            self._fail(job, self._failure(error))

    def _engine_of(self, job: Job) -> Engine:
        return job.engine or self.engine

    def _batch_of(self, job: Job) -> RunningBatch:
        engine, limits = self._engine_of(job), self.limits
        with self._changed:
            if engine not in self._batches:
                within = BatchLimits(self._budget, limits.step_tokens, limits.kept_prompts, finds_guilty=True)
                self._batches[engine] = engine.run_together(within)
            return self._batches[engine]

    def _wait(self) -> bool:
        """Until there is something to do; False where there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._aside or self._is_closing)
            return bool(self._waiting or self._running or self._aside or not self._is_closing)

    def _leave(self) -> None:
        """Let go of the jobs that nobody waits for, and of those that took too long."""
        now = time.monotonic()
        for number in [number for number, one in self._running.items() if one.job.is_cancelled]:
            self._forget(number)
        if self._end is not None and now > self._end:
            ended = {one.job for one in self._running.values()}
            with self._changed:
                ended |= set(self._waiting)
                self._waiting.clear()
            for job in ended:
                self._fail(job, Failed("the server is shutting down", is_late=True))
            self._aside.fail_all(TimeoutError("the server is shutting down"))
        for job in {one.job for one in self._running.values()}:
            if now - job.submitted > self.limits.request_seconds:
                self._fail(job, Failed(f"it took more than {self.limits.request_seconds:g} seconds", is_late=True))
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
            late = [job for job in waiting if now - job.submitted > self.limits.wait_seconds and not job.is_cancelled]
            self._waiting.extend(job for job in waiting if not job.is_cancelled and job not in late)
            self.counts.cancelled += sum(job.is_cancelled for job in waiting)
        for job in late:
            self._fail(job, Failed(f"no answer could begin within {self.limits.wait_seconds:g} seconds", is_late=True))

    def _admit(self) -> None:
        """Let jobs join while there is room: one where a prompt is read at once, which holds up the others."""
        is_next = True
        while self._waiting and is_next:
            is_next = self._batch_of(self._waiting[0]).reads_in_pieces
            is_next = self._admit_first() and is_next

    def _admit_first(self) -> bool:
        """Let the job that waits longest join; False where there is no room."""
        job = self._waiting[0]
        numbers = [next(self._numbers) for _ in job.questions]
        try:
            running = [one.job.questions[one.place] for one in self._running.values()]
            if num_rows([*running, *job.questions]) > self.limits.rows:
                return False
            followed = self._followed(job, numbers)
            with self._engine_of(job).inference():
                has_joined = self._batch_of(job).add(numbers, job.questions) is not None
        except Exception as error:
            log.error("a prompt could not be read: %s", error, exc_info=traceback_of(error))
            self._waiting_done()
            self._fail(job, self._failure(error))
            return True
        if has_joined:
            self._waiting_done()
            self.counts.begun += 1
            self.counts.queue_seconds += time.monotonic() - job.submitted
            self._running |= followed
            self.counts.prompt_tokens += sum(question.prompt.size for question in job.questions)
        return has_joined

    def _followed(self, job: Job, numbers: Sequence[int]) -> dict[int, _Running]:
        processor = self._engine_of(job).processor
        texts = [follow_text(processor, question.prompt, is_plain=job.is_plain) for question in job.questions]
        return {number: _Running(job, place, texts[place]) for place, number in enumerate(numbers)}

    def _waiting_done(self) -> None:
        with self._changed:
            self._waiting.popleft()

    def _step(self, engine: Engine, batch: RunningBatch) -> None:
        with engine.inference():
            searches = batch.step()
        for number, search in searches.items():
            if number not in self._running:  # another answer of its request has failed
                continue
            job = self._running[number].job
            try:
                self._tell(number, search)
            except Exception as error:
                log.error("what was written of an answer cannot be told", exc_info=error)
                self._fail(job, self._failure(error))

    def _tell(self, number: int, search: Search) -> None:
        job, place, text_of = self._running[number]
        question = job.questions[place]
        if search.failure is not None:
            self._fail(job, self._failure(search.failure))
            return
        tokens = search.best.tokens if search.is_done else search.beams[0].tokens
        if not job.first_token and place == 0:
            self.counts.first_tokens += 1
            job.first_token = time.monotonic()
            self.counts.first_token_seconds += job.first_token - job.submitted
        if not (search.is_done or job.stops or job.is_streamed):
            return
        # The text before it is known to be whole: a beam search may change its mind.
        is_told = search.is_done or find_method(question.options).can_stream
        text, has_stopped = _until(text_of(tokens) if is_told else "", job.stops)
        end: EndReason | None = None
        if has_stopped:
            end = "stop"
        elif search.is_done:
            end = "length" if len(tokens) >= question.options.max_new_tokens and not search.best.is_ended else "stop"
        if end is not None:
            self._forget(number)
            self.counts.answer_tokens += len(tokens)
            if place == 0 and len(tokens) > 1:
                self.counts.between_tokens_seconds += time.monotonic() - job.first_token
                self.counts.between_tokens += len(tokens) - 1
        if end is not None or job.is_streamed:
            job.listener(Answered(place, tokens, text, end))

    def _forget(self, number: int) -> None:
        if (running := self._running.pop(number, None)) is not None:
            self._batch_of(running.job).drop(number)

    def _fail(self, job: Job, why: Failed) -> None:
        for number in [number for number, one in self._running.items() if one.job is job]:
            self._forget(number)
        self.counts.failed += 1
        job.listener(why)

    def _see_device(self, error: Exception) -> None:
        if is_device_failure(error) and not self.is_lost:
            self.is_lost = True
            self._on_lost()

    def _failure(self, error: Exception) -> Failed:
        self._see_device(error)
        return Failed(str(error) if isinstance(error, HanlinError) else failed(error).message, is_ours=True)

    def _count(self) -> None:
        self.counts.waiting, self.counts.running = len(self._waiting), len(self._running)
        with self._changed:  # other threads make batches
            batches = list(self._batches.values())
        self.counts.cache_positions = sum(batch.positions for batch in batches)


def num_rows(questions: Sequence[AnswerRequest]) -> int:
    """Of a batch, that questions need at most."""
    return sum(find_method(question.options).num_beams(question.options) for question in questions)


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of several, and whether there is any."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
