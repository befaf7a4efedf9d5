"""Scores of texts against texts. Pure functions; no torch."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Unicode NFKC (full-width letters become plain ones), runs of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def is_match(answer: str | None, gold: str | None) -> bool:
    """Whether both say the same after `normalise`; an answer that was not reached (None) says nothing."""
    return normalise(answer or "") == normalise(gold or "")


def share(are_right: Sequence[bool]) -> float:
    """The share of true ones, 0 to 1."""
    return mean([float(is_right) for is_right in are_right])


def mean(numbers: Sequence[float]) -> float:
    """The plain mean; 0 of nothing."""
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of characters (Levenshtein).

    Bit-parallel after Myers (1999) and Hyyrö (2003): one step per character of `second`.
    """
    if not first:
        return len(second)
    places: dict[str, int] = defaultdict(int)
    for place, character in enumerate(first):
        places[character] |= 1 << place
    everywhere, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    # Bits: where the column's distance rises or falls by one from the row before.
    rises, falls, distance = everywhere, 0, len(first)
    for character in second:
        equal = places.get(character, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = (falls | ~(diagonal | rises)) & everywhere, rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & everywhere, (down << 1) & everywhere
        rises, falls = (down | ~(diagonal | up)) & everywhere, up & diagonal
    return distance


def character_error(answers: Sequence[str | None], golds: Sequence[str | None]) -> float:
    """Edits needed to turn the answers into the gold texts, over the gold texts' characters; can exceed 1."""
    pairs = [(normalise(a or ""), normalise(g or "")) for a, g in zip(answers, golds, strict=True)]
    length = sum(len(gold) for _, gold in pairs)
    edits = sum(edit_distance(answer, gold) for answer, gold in pairs)
    return edits / length if length else float(edits > 0)
