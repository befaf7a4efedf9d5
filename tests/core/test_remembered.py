"""What was found out about files is asked again when a file, the question or the memory itself changes."""

from __future__ import annotations

import os
from pathlib import Path

from hanlin.core.remembered import remembered


def test_an_answer_is_kept_until_something_changes(tmp_path: Path, monkeypatch) -> None:
    file, cache, asked = tmp_path / "data", tmp_path / "cache", []
    file.write_bytes(b"one")

    def ask(question: str = "q") -> list:
        return remembered(cache, [file], question, lambda: asked.append(file.read_bytes()) or [len(asked)])

    assert ask() == [1]
    assert ask() == [2]  # the file was written a moment ago: nothing is kept
    now = os.stat(file).st_ctime_ns
    monkeypatch.setattr("hanlin.core.remembered.time.time_ns", lambda: now + 3_000_000_000)
    assert ask() == ask() == [3]
    assert ask("other") == [4]
    file.write_bytes(b"two")  # of the same size
    assert ask() == [5]
    (kept,) = [path for path in cache.rglob("*.json") if b"[5]" in path.read_bytes()]
    kept.write_bytes(kept.read_bytes().replace(b"[5]", b"[7]"))
    assert ask() == [6]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "data").write_bytes(b"one")
    now = os.stat(tmp_path / "data").st_ctime_ns
    monkeypatch.setattr("hanlin.core.remembered.time.time_ns", lambda: now + 3_000_000_000)
    assert remembered(tmp_path / "cache", [tmp_path / "data"], "q", lambda: 3) == 3
