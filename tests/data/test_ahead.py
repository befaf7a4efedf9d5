from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hanlin.core.errors import DataError
from hanlin.data import ahead
from hanlin.data.ahead import Ahead


def test_an_item_is_made_before_it_is_asked_for() -> None:
    made = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    items = Ahead(source())
    assert items.take() == 1
    assert made.wait(60)
    assert (items.peek(), items.take(), items.peek(), items.take()) == (2, 2, None, None)
    items.close()


def test_what_was_waited_for_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    is_waited_for, times = threading.Event(), iter([1.0, 1.5])

    def source() -> Iterator[str]:
        assert is_waited_for.wait(60)
        yield "item"

    def clock() -> float:
        is_waited_for.set()
        return next(times)

    monkeypatch.setattr(ahead, "time", SimpleNamespace(perf_counter=clock))
    items = Ahead(source())
    assert items.take() == "item"
    assert items.seconds_waited == 0.5
    items.close()


def test_an_error_comes_up_where_its_item_is_taken() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise DataError("rows.jsonl:2: was written to")

    items = Ahead(source())
    assert items.take() == 1
    assert items.peek() is None
    with pytest.raises(DataError, match=r"rows.jsonl:2"):
        list(items)
