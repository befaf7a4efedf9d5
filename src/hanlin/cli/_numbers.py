"""Numbers on the command line, with the least and the most that make sense."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MAX_PROCESSES = 1024
"""That one command starts on a machine; a mistyped number must not bring it down."""


def whole(least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """The type of an option that takes a whole number."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least:,} to {most:,}")
        return number

    return read


def real(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that takes a number."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
        return number

    return read
