"""Work of the model that is no writing of answers: one step of it after each step of the answers, job by job in turn.

So neither holds the other up for longer than a step, and the thread that owns the model does both.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from hanlin.core.errors import traceback_of

__all__ = ["SideJob", "SideJobs"]

log = logging.getLogger(__name__)

_AT_ONCE = 4
"""Jobs that are begun beside each other: what they have read lies in memory that no limit counts."""


class JobCounts(Protocol):
    """What is counted of jobs (`ServerCounts`)."""

    cancelled: int
    failed: int
    prompt_tokens: int


@dataclass(eq=False)
class SideJob:
    """steps: what each step of the model has found, at last the result; done: is told that, or the error instead;
    tokens: that are read.
    """

    steps: Iterator[Any]
    done: Callable[[Any, Exception | None], None]
    tokens: int = 0
    submitted: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False


class SideJobs:
    """Those that are not done; `add` may be called by any thread, `step` by the one that runs the model."""

    def __init__(self, counts: JobCounts, on_error: Callable[[Exception], None] = lambda error: None) -> None:
        """on_error: told what goes wrong in a step."""
        self._counts, self._on_error = counts, on_error
        self._waiting: deque[SideJob] = deque()
        self._begun: deque[tuple[SideJob, Any]] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._begun)

    def add(self, job: SideJob) -> None:
        self._waiting.append(job)

    def step(self, seconds: float) -> None:
        """The next step of the job whose turn it is; seconds: that a job may take in all."""
        for _ in range(len(self._waiting)):
            job = self._waiting.popleft()
            if not self._is_let_go(job, seconds):
                waits = len(self._begun) >= _AT_ONCE
                self._waiting.append(job) if waits else self._begun.append((job, None))
        if not self._begun:
            return
        job, found = self._begun.popleft()
        if self._is_let_go(job, seconds):
            return
        try:
            self._begun.append((job, next(job.steps)))
        except StopIteration:
            self._counts.prompt_tokens += job.tokens
            job.done(found, None)
        except Exception as error:
            log.error("a step beside the answers failed: %s", error, exc_info=traceback_of(error))
            self._on_error(error)
            self._fail(job, error)

    def fail_all(self, error: Exception) -> None:
        """Told of all that are here."""
        jobs = [*self._waiting, *(job for job, _ in self._begun)]
        self._waiting.clear()
        self._begun.clear()
        for job in jobs:
            self._fail(job, error)

    def _is_let_go(self, job: SideJob, seconds: float) -> bool:
        """Whether nobody waits for a job any more, or it took too long."""
        if job.is_cancelled:
            self._counts.cancelled += 1
            return True
        if is_late := time.monotonic() - job.submitted > seconds:
            self._fail(job, TimeoutError(f"it took more than {seconds:g} seconds"))
        return is_late

    def _fail(self, job: SideJob, error: Exception) -> None:
        self._counts.failed += 1
        job.done(None, error)
