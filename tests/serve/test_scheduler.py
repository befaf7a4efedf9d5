from __future__ import annotations

import copy
import sys
import threading
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hanlin.generate.engine import Engine
from hanlin.serve.limits import Limits
from hanlin.serve.scheduler import BusyError, Job, Scheduler


def test_what_is_held_can_be_counted_while_adapters_are_asked_for_the_first_time(engine: Engine) -> None:
    scheduler, usual = Scheduler(engine, Limits()), sys.getswitchinterval()
    jobs = [Job([], print, engine=copy.copy(engine)) for _ in range(300)]
    asking = threading.Thread(target=lambda: [scheduler._batch_of(job) for job in jobs])
    sys.setswitchinterval(1e-6)
    try:
        asking.start()
        while asking.is_alive():
            scheduler._count()
    finally:
        sys.setswitchinterval(usual)
    asking.join()
    assert scheduler.counts.cache_positions == 0


class FailedDevice:
    """An engine whose device has failed: what is said of one call is said of all."""

    processor = None

    def run_together(self, limits: Any) -> Any:
        return self

    def cost(self, questions: Any) -> int:
        return 0

    @contextmanager
    def inference(self) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        yield


def test_a_failed_device_ends_the_server_instead_of_failing_every_request() -> None:
    told, lost = threading.Event(), threading.Event()
    engine: Any = FailedDevice()
    engine.reads_in_pieces, engine.positions, engine.is_empty = False, 0, True
    scheduler = Scheduler(engine, Limits(), on_lost=lost.set)
    scheduler.start()
    scheduler.submit(Job([], lambda end: told.set()))
    assert told.wait(10)
    assert lost.wait(10)
    assert not scheduler.is_alive  # /health says 503
    with pytest.raises(BusyError):
        scheduler.submit(Job([], print))
    scheduler.close(10)
    assert not scheduler.is_running
