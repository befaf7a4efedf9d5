"""Numbers on the command line, with the least and the most that make sense."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

MAX_PROCESSES = 1024
"""That one command starts on a machine; a mistyped number must not bring it down."""

Number = TypeVar("Number", int, float)


def whole(least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """The type of an option that takes a whole number."""
    return _within(int, least, most, f"whole number from {least:,} to {most:,}")


def real(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that takes a number."""
    return _within(float, least, most, f"number from {least:g} to {most:g}")


def _within(convert: Callable[[str], Number], least: Number, most: Number, wanted: str) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        try:
            number = convert(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no {wanted}")
        return number

    return read
