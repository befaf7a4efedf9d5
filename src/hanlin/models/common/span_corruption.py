"""Span corruption on the fly: a piece of a token stream -> what is read and what is wanted; for all T5-like families.

Each document of the piece is corrupted by itself, as `data/pretraining/span_corruption.py` does it; spans are numbered
through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.errors import ConfigError
from hanlin.core.tokenizer import FindsTokens
from hanlin.data.pretraining.span_corruption import SEED, Marks, corrupt_spans

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Corruption:
    """density: share of the tokens that is taken out; mean_span: tokens per span; num_marks: the most spans."""

    density: float
    mean_span: float
    num_marks: int

    @property
    def _left(self) -> float:
        """Ids that are read, per token of the document: what is kept, and the marks."""
        return 1 - self.density + self.density / self.mean_span

    def tokens_for(self, length: int) -> int:
        """The tokens of which about `length` ids are left to read."""
        return int(length / self._left)

    def length_of(self, num_tokens: int) -> int:
        """The length whose `tokens_for` this is; only for such numbers."""
        return math.ceil(num_tokens * self._left - 1e-6)

    def run(
        self, tokens: np.ndarray, length: int, marks: Marks, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is read, at most `length` ids, and all that is wanted, with the unused mark at its end; int64.

        A document without two tokens, or for whose spans no marks are left, is only read. rng: None draws as the
        first sample of the original's program does.
        """
        generator = _generator(rng)
        context, target, used = [], [], 0
        for document in np.split(tokens, np.flatnonzero(tokens[:-1] == marks.end) + 1):
            read, wanted, count = self._document(document, marks, generator)
            if used + count >= self.num_marks:
                read, wanted, count = document, document[:0], 0
            first = marks.first_span + used
            context.append(_numbered(read, marks.vocab_size, first))
            target.append(_numbered(wanted, marks.vocab_size, first))
            used += count
        return _cut(np.concatenate(context), np.concatenate(target), length, marks.first_span, used)

    def _document(
        self, ids: np.ndarray, marks: Marks, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """What is read, what is wanted and the number of spans; spans numbered from `vocab_size` on."""
        if len(ids) < 2:
            return ids, ids[:0], 0
        made = corrupt_spans(ids.tolist(), marks.vocab_size, generator, density=self.density, mean_span=self.mean_span)
        return np.array(made.context, np.int64), np.array(made.target, np.int64), len(made.offsets) // 2


def check_spans(density: float, mean_span: float) -> None:
    """Raises: ConfigError."""
    if not 0 < density < 1:
        raise ConfigError(f"density is {density:g}, expected a share between 0 and 1")
    if mean_span < 1:
        raise ConfigError(f"mean_span is {mean_span:g}, expected at least 1 token")


def span_tokens(tokenizer: FindsTokens) -> tuple[int, int]:
    """Id of <s_0>, and how many such tokens follow each other.

    Raises: ConfigError.
    """
    first = tokenizer.find("<s_0>")
    if first is None:
        raise ConfigError("the vocabulary has no tokens <s_0>, <s_1>, ... that mark spans; take the T5's vocab.txt")
    count = 1
    while tokenizer.find(f"<s_{count}>") == first + count:
        count += 1
    return first, count


def _numbered(ids: np.ndarray, vocab_size: int, first: int) -> np.ndarray:
    return np.where(ids >= vocab_size, ids - vocab_size + first, ids)


def _cut(context: np.ndarray, target: np.ndarray, length: int, first: int, used: int) -> tuple[np.ndarray, np.ndarray]:
    """Only the first ids of what is read, and the spans whose marks are among them."""
    context = context[:length]
    left = int(((context >= first) & (context < first + used)).sum())
    places = np.flatnonzero(target == first + left)
    kept = target[: places[0]] if left < used else target
    return context, np.append(kept, first + left)


def _generator(rng: np.random.Generator | None) -> torch.Generator:
    import torch

    seed = SEED if rng is None else int(rng.integers(2**63 - 1))
    return torch.Generator().manual_seed(seed)
