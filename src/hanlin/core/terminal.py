"""Standard output and standard error as they are found: closed, full, a pipe whose reader has gone, not in UTF-8.

What a command has computed must not be lost for want of a place to show it. So nothing ends because standard error
cannot be written to; standard output is in UTF-8 wherever it is no terminal, and a terminal that lacks a character
shows another one.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hanlin.core.language import translate
from hanlin.core.logging import is_quiet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "LOSS_BEGIN",
    "LOSS_END",
    "has_colours",
    "marked",
    "mute",
    "padded",
    "screen",
    "shows_progress",
    "steady_streams",
    "width_of",
]

LOSS_BEGIN, LOSS_END = "⟪", "⟫"
"""Around what carries loss, where there are no colours."""


@contextmanager
def steady_streams() -> Iterator[None]:
    """Standard output and error for a command."""
    _occupy_closed_handles()
    out, err = sys.stdout, sys.stderr
    sys.stdout = out or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    for stream in (out, err):
        _encode_all(stream)
    sys.stderr = SteadyStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def screen(**options: Any) -> Console:
    """The console that writes to standard output, in the user's language; options: rich's.

    A `str` is said to the user: headings, labels and cells are translated. A `Text` is a datum, and stays as it is.
    """
    from rich.console import Console

    in_users_language = translate()

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich ends the program with a code of its own

        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(in_users_language(text, self.file), **how)

    return Screen(**options)


def width_of(text: str) -> int:
    """Columns of a terminal; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def padded(text: str, width: int) -> str:
    """With spaces behind it, up to so many columns."""
    return text + " " * (width - width_of(text))


def has_colours(console: Console) -> bool:
    """Whether a colour would be seen there."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def marked(text: str, carries_loss: bool, console: Console) -> Text:
    """A piece of a sample: by its colour, or by brackets around it, it says whether it carries loss."""
    from rich.text import Text

    if not carries_loss:
        return Text(text, style="not bold")
    return Text(text, "black on green") if has_colours(console) else Text(f"{LOSS_BEGIN}{text}{LOSS_END}", "not bold")


def shows_progress(console: Console) -> bool:
    """Whether a bar may move there: on a terminal, or in a notebook that has ipywidgets; and somebody wants it."""
    has_widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return (console.is_terminal or has_widgets) and not is_quiet()


def mute(stream: Any) -> None:
    """Let what is still to be written to a stream, at the end of the process too, go nowhere."""
    with suppress(OSError, ValueError, AttributeError):  # it has no handle
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class SteadyStream:
    """A text stream that drops what it cannot write. said: when something was written last, by time.monotonic()."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.said = stream, 0.0

    def write(self, text: str) -> int:
        self.said = time.monotonic()
        with suppress(OSError, ValueError, AttributeError):  # full or gone; closed; none
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _occupy_closed_handles() -> None:
    """Else the next file that is opened takes the place of standard output."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free one


def _encode_all(stream: Any) -> None:
    """Let a stream take every character."""
    if not isinstance(stream, io.TextIOWrapper):
        return
    if stream.isatty():
        stream.reconfigure(errors="replace")
    else:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
