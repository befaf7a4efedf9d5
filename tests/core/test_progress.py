"""How far long work is: a bar on a terminal, lines elsewhere, nothing where nobody wants it."""

from __future__ import annotations

import io
import sys
from typing import ClassVar

import pytest

from hanlin.core import progress as room
from hanlin.core.logging import visiting
from hanlin.core.progress import LINE_SECONDS, counted, progress


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
