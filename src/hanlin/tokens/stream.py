"""Growing ids -> their text, without decoding all of them again; growing texts -> the pieces to show at once, never
half a character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]

# What a decoder writes for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"

_TAIL = 24
"""Ids that are decoded again before a place is looked for, behind which the others are."""
_TRIES = 12
_MOST_TEXTS = 64


@dataclass(eq=False)
class _Settled:
    """ids, text: whose text stays, whatever follows; context: how many ids stand before those that are decoded with
    what follows; shown: their text.
    """

    ids: list[int]
    text: str = ""
    context: int = 0
    shown: str = ""


class Growing:
    """A tokenizer's `decode`, of ids that grow from call to call: the text of all of them, but only the last ones are
    decoded, behind the token before them. Of other ids it is the same, and takes longer.

    A text may be cut behind a token that shows something whole: what follows neither completes a character in it nor
    stands first, where a tokenizer leaves a blank out. begins_word: whether a token joins none before it; None: none
    does.
    """

    def __init__(self, decode: Decode, begins_word: Callable[[int], bool] | None = None) -> None:
        self._decode = decode
        self._begins_word = begins_word or (lambda _: True)
        self._settled: list[_Settled] = []

    def __call__(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        known = [one for one in self._settled if ids[: len(one.ids)] == one.ids]
        one = max(known, key=lambda one: len(one.ids), default=None)
        if one is None:
            one = _Settled([])
            self._settled = [*self._settled, one][-_MOST_TEXTS:]
        text = self._text(one, ids)
        if len(ids) - len(one.ids) >= _TAIL:
            self._cut(one, ids)
        return text

    def _text(self, one: _Settled, ids: Sequence[int]) -> str:
        return one.text + self._decode(ids[one.context :])[len(one.shown) :]

    def _cut(self, one: _Settled, ids: list[int]) -> None:
        """Find the last place at which the text can be cut."""
        for place in range(len(ids) - 1, max(len(ids) - _TRIES, len(one.ids)), -1):
            if not self._begins_word(ids[place]):
                continue
            context = next((at for at in range(place - 1, -1, -1) if self._begins_word(ids[at])), 0)
            shown = self._decode(ids[context:place])
            if shown.strip() and not shown.endswith(REPLACEMENT):
                text = self._text(one, ids[:place])
                one.ids, one.text, one.context, one.shown = ids[:place], text, context, shown
                return


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
