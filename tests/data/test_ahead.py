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


def test_nothing_is_made_any_more_when_it_is_closed() -> None:
    begun, ended = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 1
        begun.set()
        assert not ended.wait(0.05)
        ended.set()
        yield 2

    items = Ahead(source())
    assert items.take() == 1
    assert begun.wait(60)
    items.close()
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_interrupt_while_an_item_is_waited_for_is_not_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is taken as if nothing had been, and the thread ends."""
    may_go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        assert may_go_on.wait(60)
        yield 2

    def interrupted() -> float:
        raise KeyboardInterrupt

    items = Ahead(source())
    assert items.take() == 1
    with monkeypatch.context() as patch:
        patch.setattr(ahead, "time", SimpleNamespace(perf_counter=interrupted))
        with pytest.raises(KeyboardInterrupt):
            items.take()
    may_go_on.set()
    assert (items.take(), items.take()) == (2, None)
    items.close()
