from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from hanlin.training import signals as module
from hanlin.training.signals import StopSignals


@pytest.fixture(autouse=True)
def _terminal():
    """As in a terminal, also where nohup or a shell's background runs the tests, which let signals be ignored."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
from hanlin.training import signals
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
        wait_for(lambda: stuck.send_signal(signal.SIGTERM) or stuck.poll() is not None)
        assert stuck.returncode == 128 + signal.SIGTERM


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


# As above, but only one signal comes.
STUCK_STEP = """
import ctypes, logging
from hanlin.training import signals
signals.FIRST_STEP_SECONDS = signals.LOOK_SECONDS = 0.05
logging.basicConfig(format="%(message)s")
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
with signals.StopSignals() as watched, watched.step():
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def test_one_signal_ends_a_step_that_never_ends_and_says_where_it_waits():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STUCK_STEP], **pipes) as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == "ready\n"
        stuck.send_signal(signal.SIGTERM)
        _, told = stuck.communicate(timeout=60)
    assert stuck.returncode == 128 + signal.SIGTERM
    assert "the step has not ended for 0 s: it waits in <string>:10 (<module>); ended without saving" in told


def test_a_step_may_take_ten_times_the_longest_and_a_minute_at_least(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    signals = StopSignals()
    with signals.step():
        now += 299
        assert signals._seconds_too_long() == 0
        now += 2
        assert signals._seconds_too_long() == 301
        now -= 281  # it took 20 s in the end
    with signals.step():
        now += 199
        assert signals._seconds_too_long() == 0
        now += 2
        assert signals._seconds_too_long() == 201
    now += 1000
    assert signals._seconds_too_long() == 0  # between steps the checkpoint may take its time


def test_nohup_lets_a_run_outlive_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.requested
    finally:
        signal.signal(signal.SIGHUP, before)
