"""Preference rows as a source of pairs: the chosen and the rejected answer to a question, side by side in one row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.pack import Shuffle, SingleRows, draw_each_once, padding_share, plan_rows
from hanlin.data.prepare import Prepared, prepare
from hanlin.data.processor import SampleProcessor
from hanlin.data.report import DataReport, make_report
from hanlin.recipe.settings import DataSettings

__all__ = ["Pairs", "answer_settings", "prepare_pairs"]


class Pairs:
    """Of every row both answers, each encoded with its question; a row of which one was left out is left out."""

    has_own_order = False
    num_varying = 0
    """A pair is the same in all epochs: what the model began with is compared with it."""

    def __init__(
        self, chosen: Prepared, rejected: Prepared, processor: SampleProcessor, settings: DataSettings
    ) -> None:
        """Raises: DataError where no row has both."""
        self._sides, self._processor, self._settings = (chosen, rejected), processor, settings
        rows, first, second = np.intersect1d(chosen.rows, rejected.rows, assume_unique=True, return_indices=True)
        if not len(rows):
            raise DataError(
                f"no row has both answers: of each one was dropped; raise data.max_length ({settings.max_length}, half "
                "of which is an answer with its question)"
            )
        self._places = np.stack((first, second), 1)
        self.lengths = chosen.lengths[first] + rejected.lengths[second]
        self.loss_tokens = chosen.loss_tokens[first] + rejected.loss_tokens[second]
        facts = [chosen.identity, rejected.identity]
        self.identity = hashlib.sha256("".join(facts).encode()).hexdigest()
        self.source_bounds = np.searchsorted(first, chosen.source_bounds)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def report(self) -> DataReport:
        chosen, longest = self._sides[0], self._settings.max_length
        numbers = np.arange(len(self))
        packed = plan_rows(self.lengths, numbers, longest) if self._settings.pack else SingleRows(numbers)
        padding = padding_share(self.lengths, packed, longest)
        shown = self._processor.show(self.get(0))
        return make_report(chosen.counts, self.lengths, self.loss_tokens, longest, padding, shown)

    def get(self, number: int, rng: np.random.Generator | None = None) -> Sample:
        """The chosen answer."""
        return self.answers(number)[0]

    def answers(self, number: int) -> tuple[Sample, Sample]:
        """The chosen and the rejected answer."""
        first, second = (side.get(int(place)) for side, place in zip(self._sides, self._places[number], strict=True))
        return first, second

    def where(self, number: int) -> str:
        """File and line of the row."""
        return self._sides[0].where(int(self._places[number, 0]))

    def draw(self, seed: int, epoch: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
        """See `SampleSource`."""
        return draw_each_once(len(self), seed, rng, shuffle)

    def example_weights(self, in_context: Sequence[float]) -> Sequence[Sequence[float]]:
        return [in_context] * (len(self.source_bounds) - 1)


class _OneAnswer(DataSettings):
    @property
    def told_length(self) -> str:
        return f"half of data.max_length is {self.max_length} (a row holds both answers, each with its question)"


def answer_settings(settings: DataSettings) -> DataSettings:
    """How one answer of a pair is read: it may take half of a row."""
    return _OneAnswer.model_construct(**{**dict(settings), "max_length": max(settings.max_length // 2, 1)})


def prepare_pairs(
    files: Sequence[Path],
    processor: SampleProcessor,
    settings: DataSettings,
    *,
    tokenizer: Tokenizer,
    share: float = 1.0,
    limit: int | None = None,
) -> Pairs:
    """`prepare` of both answers of preference rows.

    Raises: as `prepare`.
    """
    half = answer_settings(settings)
    chosen, rejected = (
        prepare(files, processor, half, tokenizer=tokenizer, share=share, limit=limit, side=side)
        for side in ("chosen", "rejected")
    )
    return Pairs(chosen, rejected, processor, settings)
