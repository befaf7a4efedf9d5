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

__all__ = ["SideJob", "SideJobs"]

log = logging.getLogger(__name__)


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

    def __init__(self, counts: JobCounts) -> None:
        self._counts = counts
        self._jobs: deque[tuple[SideJob, Any]] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: SideJob) -> None:
        self._jobs.append((job, None))

    def step(self, seconds: float) -> None:
        """The next step of the job whose turn it is; seconds: that a job may take in all."""
        if not self._jobs:
            return
        job, found = self._jobs.popleft()
        if job.is_cancelled:
            self._counts.cancelled += 1
            return
        try:
            if time.monotonic() - job.submitted > seconds:
                raise TimeoutError(f"it took more than {seconds:g} seconds")
            self._jobs.append((job, next(job.steps)))
        except StopIteration:
            self._counts.prompt_tokens += job.tokens
            job.done(found, None)
        except Exception as error:
            self._counts.failed += 1
            if not isinstance(error, TimeoutError):
                log.error("a step beside the answers failed", exc_info=error)
            job.done(None, error)
