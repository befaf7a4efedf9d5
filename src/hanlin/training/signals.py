"""A polite end: the first SIGTERM, Ctrl-C or closed terminal is remembered, one that comes later ends the process.

Signals that come together count as one: a scheduler or a closing terminal may send several kinds of them at once.
After the first one a step that never ends, since it waits for another rank, is ended too.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread
from types import FrameType

from hanlin.core.waiting import describe_main_thread

log = logging.getLogger(__name__)

TOGETHER_SECONDS = 1.0
"""So long after the first signal others are taken for the same wish."""

LAST_WORD_SECONDS = 5.0
"""So long after a later signal the process may clean up; then it is ended from outside of a step that never ends."""

LOOK_SECONDS = 0.5
"""So often the step is looked at after the first signal."""

LEAST_STEP_SECONDS = 60.0
"""A step in which a signal came has at least so long."""

FIRST_STEP_SECONDS = 300.0
"""The same before any step has ended."""

USUAL_STEPS = 10
"""How many times the longest step so far it has else."""


class StopSignals:
    """Between enter and exit, a signal only sets `requested`; the loop looks at it after each step.

    Only the main thread of a program hears signals; a run in another one goes on to its end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0
        self._began: float | None = None
        self._longest: float | None = None
        self._former: dict[signal.Signals, object] = {}
        self._watch: _Watch | None = None

    def __enter__(self) -> StopSignals:
        if current_thread() is not main_thread():
            return self
        for number in _ending_signals():
            self._former[number] = signal.signal(number, self._remember)
        self._watch = _Watch(set(self._former), self._seconds_too_long)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._watch is not None:
            self._watch.close()
        self._restore()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around what must end for a signal to be heard."""
        self._began = time.monotonic()
        yield
        self._longest = max(self._longest or 0.0, time.monotonic() - self._began)
        self._began = None

    def _seconds_too_long(self) -> float:
        """For how long the step has gone on, if that is longer than any should; else 0."""
        began, longest = self._began, self._longest
        seconds = 0.0 if began is None else time.monotonic() - began
        limit = FIRST_STEP_SECONDS if longest is None else max(LEAST_STEP_SECONDS, USUAL_STEPS * longest)
        return seconds if seconds > limit else 0.0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        # No log line here: the signal may have come in the middle of writing one.
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
        elif time.monotonic() - self._first >= TOGETHER_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)  # pyright: ignore[reportArgumentType]  # what signal() gave us
        self._former = {}


class _Watch:
    """A thread that hears the signals too. Python's handlers wait for the end of a call into torch, and a call that
    waits for another rank may have none.
    """

    def __init__(self, numbers: set[signal.Signals], seconds_too_long: Callable[[], float]) -> None:
        self._numbers, self._ended, self._seconds_too_long = numbers, Event(), seconds_too_long
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._former = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        signal.set_wakeup_fd(self._former, warn_on_full_buffer=False)
        os.close(self._write)  # which ends the thread
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        first = None
        while heard := os.read(self._read, 1):
            if heard[0] not in self._numbers:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                Thread(target=self._end_stuck_step, args=(heard[0],), daemon=True).start()
            elif now - first >= TOGETHER_SECONDS and not self._ended.wait(LAST_WORD_SECONDS):
                os._exit(128 + heard[0])  # what a shell calls a death by this signal

    def _end_stuck_step(self, number: int) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if seconds := self._seconds_too_long():
                log.error(
                    "interrupted, but the step has not ended for %.0f s: it waits in %s; ended without saving",
                    seconds, describe_main_thread(),
                )  # fmt: skip
                os._exit(128 + number)


def _ending_signals() -> list[signal.Signals]:
    """SIGHUP too (a closed terminal or ssh connection), unless nohup lets the process outlive that."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not on Windows
        numbers.append(signal.SIGHUP)
    return numbers
