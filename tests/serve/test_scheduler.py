from __future__ import annotations

import copy
import sys
import threading

from hanlin.generate.engine import Engine
from hanlin.serve.limits import Limits
from hanlin.serve.scheduler import Job, Scheduler


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
