"""How well characters are told from those before them by counting alone: what a trained model has to beat.

Interpolated Kneser-Ney (Chen and Goodman 1999, one discount an order) over characters, the end of a text among them.
Characters that the training texts lack are one class, whose share is that of a uniform distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

_BEGIN, _END = "\x02", "\x03"


class CharacterModel:
    """Counts of runs of up to `order` characters; order 1 is the unigram."""

    def __init__(self, texts: Iterable[str], order: int) -> None:
        self.order = order
        counts: Counter[str] = Counter()
        for text in texts:
            padded = self._padded(text)
            counts.update(padded[at : at + order] for at in range(len(padded) - order + 1))
        self._characters = sorted({run[-1] for run in counts})
        self._num_characters = len(self._characters) + 1  # and those that are not known
        self._orders = [_Order(counts)]
        for _ in range(order - 1):
            counts = Counter(run[1:] for run in counts)  # in how many contexts each shorter run was seen
            self._orders.append(_Order(counts))

    def perplexity(self, texts: Iterable[str]) -> float:
        """Per character; the end of each text counts as one."""
        logs = [math.log(share) for text in texts for share in self._shares(self._padded(text))]
        return math.exp(-math.fsum(logs) / len(logs))

    def goes_on(self, text: str, most: int) -> str:
        """What most likely follows a text, character by character, up to its end or `most` characters."""
        added = ""
        while len(added) < most:
            run = self._padded(text + added)[-self.order : -1]
            best = max(self._characters, key=lambda character: self._share(run + character))
            if best == _END:
                break
            added += best
        return added

    def _shares(self, padded: str) -> Iterable[float]:
        for at in range(len(padded) - self.order + 1):
            yield self._share(padded[at : at + self.order])

    def _share(self, run: str) -> float:
        """Of the last character of a run of `order` characters, behind the others."""
        share = 1 / self._num_characters
        for number in range(self.order - 1, -1, -1):
            share = self._orders[number].share(run[number:], share)
        return share

    def _padded(self, text: str) -> str:
        return _BEGIN * (self.order - 1) + text + _END


class _Order:
    """Runs of one length; totals, kinds: how often a context was seen, and with how many characters after it."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.totals: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        for run, count in counts.items():
            self.totals[run[:-1]] += count
            self.kinds[run[:-1]] += 1
        once, twice = (sum(count == wanted for count in counts.values()) for wanted in (1, 2))
        self.discount = once / (once + 2 * twice) if once else 0.5

    def share(self, run: str, shorter: float) -> float:
        """The probability of the last character after the others; shorter: the one with a context shorter by one."""
        total = self.totals[run[:-1]]
        if not total:
            return shorter
        kept = max(self.counts[run] - self.discount, 0.0)
        return (kept + self.discount * self.kinds[run[:-1]] * shorter) / total
