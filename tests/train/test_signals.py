from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from hanlin.train import signals as module
from hanlin.train.signals import StopSignals


@pytest.fixture(autouse=True)
def _terminal():
    """As in a terminal, also where nohup runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_remembered_and_the_former_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signals.requested
    assert signal.getsignal(number) is before


def test_signals_that_come_together_count_as_one():
    with StopSignals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert signals.requested


def test_a_later_signal_ends_as_it_would_have_without(monkeypatch):
    monkeypatch.setattr(module, "TOGETHER_SECONDS", 0.02)

    def signal_twice() -> None:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.03)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        signal_twice()


# Waits in C for a lock that the thread has already, signals or not, as for a rank that never answers.
STUCK = """
import ctypes
from hanlin.train import signals
signals.TOGETHER_SECONDS = signals.LAST_WORD_SECONDS = 0.05
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
with signals.StopSignals():
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def test_a_later_signal_ends_a_step_that_never_ends():
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == "ready\n"
        stuck.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert stuck.poll() is None
        stuck.send_signal(signal.SIGTERM)
        assert stuck.wait(timeout=5) == 128 + signal.SIGTERM


def test_nohup_lets_a_run_outlive_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.requested
    finally:
        signal.signal(signal.SIGHUP, before)
