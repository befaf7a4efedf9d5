"""Which of several questions is guilty where what is computed of all of them goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from hanlin.core.errors import traceback_of

__all__ = ["Blame"]

log = logging.getLogger(__name__)

One = TypeVar("One")
Result = TypeVar("Result")


class Blame:
    """The failures of one step, by number of the question.

    is_sought: whether an error is looked for by computing each question alone; else it is raised.
    """

    def __init__(self, is_sought: bool) -> None:
        self.is_sought = is_sought
        self.failures: dict[int, Exception] = {}

    def note(self, number: int, error: Exception) -> None:
        if self.is_sought:  # else it is raised
            log.error("an answer that was being written failed: %s", error, exc_info=traceback_of(error))
        self.failures.setdefault(number, error)

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """What goes wrong within concerns this question alone."""
        try:
            yield
        except Exception as error:
            if not self.is_sought:
                raise
            self.note(number, error)

    def each(
        self, items: Sequence[One], number_of: Callable[[One], int], compute: Callable[[Sequence[One]], Result]
    ) -> Iterator[tuple[Sequence[One], Result]]:
        """Items with what is computed of them: of all at once, and where that goes wrong, of those of each question
        alone, without the guilty ones. What `compute` leaves behind where it raises must not matter to the next call.
        """
        if not items:
            return
        try:
            found = compute(items)
        except Exception as error:
            if not self.is_sought:
                raise
            yield from self._each_alone(items, number_of, compute, error)
        else:
            yield items, found

    def _each_alone(
        self,
        items: Sequence[One],
        number_of: Callable[[One], int],
        compute: Callable[[Sequence[One]], Result],
        of_all: Exception,
    ) -> Iterator[tuple[Sequence[One], Result]]:
        numbers = list(dict.fromkeys(map(number_of, items)))
        if len(numbers) == 1:
            self.note(numbers[0], of_all)
            return
        for number in numbers:
            own = [one for one in items if number_of(one) == number]
            try:
                found = compute(own)
            except Exception as error:
                self.note(number, error)
            else:
                yield own, found
