"""A polite end: the first SIGTERM, Ctrl-C or closed terminal is remembered, one that comes later ends the process.

Signals that come together count as one: a scheduler or a closing terminal may send several kinds of them at once.
"""

from __future__ import annotations

import os
import signal
import time
from threading import Event, Thread
from types import FrameType

TOGETHER_SECONDS = 1.0
"""So long after the first signal others are taken for the same wish."""

LAST_WORD_SECONDS = 5.0
"""So long after a later signal the process may clean up; then it is ended from outside of a step that never ends."""


class StopSignals:
    """Between enter and exit, a signal only sets `requested`; the loop looks at it after each step."""

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in _ending_signals():
            self._former[number] = signal.signal(number, self._remember)
        self._watch = _Watch(set(self._former))
        return self

    def __exit__(self, *exception: object) -> None:
        self._watch.close()
        self._restore()

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

    def __init__(self, numbers: set[signal.Signals]) -> None:
        self._numbers, self._ended = numbers, Event()
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
            elif now - first >= TOGETHER_SECONDS and not self._ended.wait(LAST_WORD_SECONDS):
                os._exit(128 + heard[0])  # what a shell calls a death by this signal


def _ending_signals() -> list[signal.Signals]:
    """SIGHUP too (a closed terminal or ssh connection), unless nohup lets the process outlive that."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not on Windows
        numbers.append(signal.SIGHUP)
    return numbers
