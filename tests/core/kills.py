"""A piece of work in a process that is killed at each place where files change, one after another."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from hanlin.core import files


def killed_at(call: int, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do the work in a process that is killed at its `call`-th rename or fsync; whether it came that far."""
    if (child := os.fork()) == 0:
        calls = itertools.count(1)

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *given: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == call else real(*given)

        for place, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (files, "_rename")):
            monkeypatch.setattr(place, name, counted(getattr(place, name)))
        with suppress(BaseException):
            work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
