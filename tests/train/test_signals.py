from __future__ import annotations

import os
import signal

import pytest

from hanlin.train.signals import StopSignals


@pytest.fixture(autouse=True)
def _terminal():
    """As in a terminal, also where nohup runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_remembered_and_the_former_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signals.requested
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_nohup_lets_a_run_outlive_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.requested
    finally:
        signal.signal(signal.SIGHUP, before)
