"""Growing texts -> the pieces to show at once, never half a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

# What a decoder writes for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"


class Pieces:
    """What each text adds to the one before.

    An unfinished character at the end, an end that may still change or that may be the beginning of one of `stops` is
    held back until it is certain; the last text is shown in full.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops, self._shown = stops, ""

    def add(self, text: str, *, is_last: bool = False) -> str:
        """The new piece of a text that has grown; it may be empty."""
        stable = text if is_last else self._stable(text)
        if len(stable) <= len(self._shown) or not (is_last or stable.startswith(self._shown)):
            return ""
        piece, self._shown = stable[len(self._shown) :], stable
        return piece

    def _stable(self, text: str) -> str:
        text = text.rstrip(REPLACEMENT)
        begun = (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return text[: len(text) - max(begun, default=0)]


def stream_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield what each text adds to the one before; see `Pieces`."""
    pieces, text = Pieces(), ""
    for text in texts:
        if piece := pieces.add(text):
            yield piece
    if piece := pieces.add(text, is_last=True):
        yield piece
