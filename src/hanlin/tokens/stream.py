"""Growing texts -> the pieces to show at once, never half a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# What a decoder writes for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"


def stream_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield what each text adds to the one before.

    An unfinished character at the end, or an end that may still change, is held back until it is certain; the last
    text is shown in full.
    """
    shown, text = "", ""
    for text in texts:
        stable = text.rstrip(REPLACEMENT)
        if len(stable) > len(shown) and stable.startswith(shown):
            yield stable[len(shown) :]
            shown = stable
    if len(text) > len(shown):
        yield text[len(shown) :]
