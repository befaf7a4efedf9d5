from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from hanlin.serve.scheduler import ServerCounts
from hanlin.serve.side_jobs import SideJob, SideJobs


def test_few_jobs_hold_memory_at_once_and_all_are_done() -> None:
    """What a job has read lies in memory that nobody counts."""
    jobs, done, open_at_once, begun = SideJobs(ServerCounts()), [], [], set()

    def steps(number: int) -> Iterator[int]:
        for _ in range(3):
            begun.add(number)
            open_at_once.append(len(begun))
            yield number
        begun.remove(number)

    for number in range(20):
        jobs.add(SideJob(steps(number), lambda found, _: done.append(found)))
    while len(jobs):
        jobs.step(60)
    assert done == list(range(20))
    assert 1 < max(open_at_once) <= 4


def test_a_job_that_waits_is_let_go_in_time() -> None:
    counts, told = ServerCounts(), []
    jobs = SideJobs(counts)

    def done(found: Any, error: Exception | None) -> None:
        told.append(error)

    for _ in range(6):
        jobs.add(SideJob(iter(range(1000)), done))
    late, left = SideJob(iter([1]), done, submitted=time.monotonic() - 100), SideJob(iter([1]), done)
    jobs.add(late)
    jobs.add(left)
    left.is_cancelled = True
    jobs.step(60)
    assert (len(jobs), counts.cancelled, counts.failed) == (6, 1, 1)
    assert [type(error) for error in told] == [TimeoutError]
