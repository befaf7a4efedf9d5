"""How far long work is: a bar on a terminal, lines elsewhere, nothing where nobody wants it."""

from __future__ import annotations

import io
import sys
import time as real_time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from hanlin.core import progress as room
from hanlin.core import terminal
from hanlin.core.logging import visiting
from hanlin.core.progress import LINE_SECONDS, at_work, counted, idle, progress
from hanlin.core.terminal import SteadyStream


class Clock:
    """Goes on by ten seconds whenever it is looked at."""

    now: ClassVar = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "time", Clock())


def test_without_a_terminal_a_line_comes_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert LINE_SECONDS == 30
    assert list(counted(range(8), "Encoding", 8)) == list(range(8))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["Encoding: 38%, 0:00:50 left", "Encoding: 75%, 0:00:20 left"]


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("ab", "Encoding", 2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert list(counted(range(8), "Encoding", 8)) == list(range(8))
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "━" in shown
    assert "100%" in shown
    assert " left" not in shown


def test_nothing_is_shown_where_nobody_wants_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(counted(range(8), "Encoding", 8, shows=False))
    with visiting(shows=False):
        list(counted(range(8), "Encoding", 8))
    monkeypatch.setenv("RANK", "1")
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with progress("Loading", 8) as advance:
        for _ in range(8):
            advance(1)
    assert capsys.readouterr() == ("", "")


def _await_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said while this thread waits, as in one long call; it must come, however slow the machine is."""
    for _ in range(12_000):
        if told := capsys.readouterr().err:
            return told
        real_time.sleep(0.01)
    pytest.fail("nothing was said")


def test_a_long_call_does_not_leave_a_command_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on by itself: nobody counts anything here."""
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.01)
    with at_work("hanlin convert"):
        assert _await_line(capsys).startswith("hanlin convert: under way for 0:00:")


def test_what_is_under_way_is_said_where_an_item_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.01)

    def slow_file() -> Iterator[int]:
        yield 0
        told.append(_await_line(capsys))
        yield 1

    told: list[str] = []
    with at_work("hanlin prepare"):
        list(counted(slow_file(), "Encoding", 2))
    assert told[0].startswith("Encoding: 50%, ")


def test_a_command_that_waits_for_others_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    watch = room._Watch("hanlin serve")
    with watch.pausing():
        for _ in range(8):
            watch.look()
    assert capsys.readouterr().err == ""
    for _ in range(8):
        watch.look()
    assert capsys.readouterr().err.count("hanlin serve: under way") == 2
    with idle():  # without a command too
        pass


def test_what_was_said_otherwise_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar, or a log: never both."""
    stream = SteadyStream(sys.stderr)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(terminal, "time", room.time)
    watch = room._Watch("hanlin train")
    for _ in range(8):
        print("step=1", file=sys.stderr)
        watch.look()
    assert set(capsys.readouterr().err.splitlines()) == {"step=1"}
