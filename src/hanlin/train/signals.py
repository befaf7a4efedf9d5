"""A polite end: the first SIGTERM, Ctrl-C or closed terminal is remembered, the second one ends the process at once."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignals:
    """Between enter and exit, a signal only sets `requested`; the loop looks at it after each step."""

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in _ending_signals():
            self._former[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        # No log line here: the signal may have come in the middle of writing one.
        self.requested = True
        self._restore()  # so that the next one ends the process

    def _restore(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)  # pyright: ignore[reportArgumentType]  # what signal() gave us
        self._former = {}


def _ending_signals() -> list[signal.Signals]:
    """SIGHUP too (a closed terminal or ssh connection), unless nohup lets the process outlive that."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not on Windows
        numbers.append(signal.SIGHUP)
    return numbers
