"""The next item of an iterator, made by a thread while the one before it is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of `source`, one ahead. What goes wrong in the thread is raised where the item is taken."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming = self._begin()
        self.seconds_waited = 0.0
        """For items that were not there when they were asked for."""

    def close(self) -> None:
        """Let the thread go, when it has made what it is making: nothing reads the source any more after this."""
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        """All that is left; the thread is let go at the end."""
        try:
            while (item := self.take()) is not None:
                yield item
        finally:
            self.close()

    def take(self) -> T | None:
        """The next item, None behind the last one; the one after it is begun.

        Raises: what the source raised in its making.
        """
        item = self._wait().result()
        self._coming = self._begin()
        return item

    def peek(self) -> T | None:
        """The item that `take` will give; None behind the last one, and for one that `take` will raise an error for."""
        coming = self._wait()
        return None if coming.exception() else coming.result()

    def _begin(self) -> Future[T | None]:
        return self._thread.submit(next, self._source, None)

    def _wait(self) -> Future[T | None]:
        start = time.perf_counter()
        self._coming.exception()
        self.seconds_waited += time.perf_counter() - start
        return self._coming
