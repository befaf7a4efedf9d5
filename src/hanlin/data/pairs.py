"""Preference rows as a source of answers that are compared: the chosen and the rejected one, and one to another
question where that is asked for, each with the question, side by side in one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.bad_rows import list_bad_rows
from hanlin.data.forms.content import Side
from hanlin.data.pack import Shuffle, SingleRows, draw_each_once, padding_share, plan_rows
from hanlin.data.prepare import Prepared, prepare
from hanlin.data.processor import SampleProcessor
from hanlin.data.report import Counts, DataReport, make_report
from hanlin.recipe.settings import DataSettings

__all__ = ["SAME_TOKENS", "Pairs", "answer_settings", "is_same", "prepare_pairs"]

SAME_TOKENS = (
    "its two answers are the same as tokens (characters that the vocabulary lacks, or cut at the same place), and "
    "nothing is preferred"
)


class Pairs:
    """Of every row its answers, each encoded with the question; a row of which one was left out is left out."""

    has_own_order = False
    num_varying = 0
    """A pair is the same in all epochs: what the model began with is compared with it."""

    def __init__(self, sides: Sequence[Prepared], processor: SampleProcessor, settings: DataSettings) -> None:
        """sides: of the same rows, the chosen answers first. Raises: DataError where no row has all answers."""
        self._sides, self._processor, self._settings = sides, processor, settings
        rows = reduce(np.intersect1d, [side.rows for side in sides])
        if not len(rows):
            raise DataError(
                f"no row has all {len(sides)} answers: of each one was dropped; raise data.max_length "
                f"({settings.max_length}, of which each, with its question, has an equal part)"
            )
        places = np.stack([np.searchsorted(side.rows, rows) for side in sides], 1)
        self._places = places[self._differing(places)]
        self._counts = _counts_of_rows(sides, len(rows), len(self._places))
        columns = list(zip(sides, self._places.T, strict=True))
        self.lengths = np.sum([side.lengths[places] for side, places in columns], 0)
        self.loss_tokens = np.sum([side.loss_tokens[places] for side, places in columns], 0)
        self.identity = hashlib.sha256("".join(side.identity for side in sides).encode()).hexdigest()
        self.source_bounds = np.searchsorted(self._places[:, 0], sides[0].source_bounds)

    def _differing(self, places: np.ndarray) -> np.ndarray:
        """Which of the pairs have two answers as tokens; only those of equal lengths are looked at.

        Raises: DataError that lists the others, unless bad rows are dropped.
        """
        first, second = self._sides[:2]
        alike = first.lengths[places[:, 0]] == second.lengths[places[:, 1]]
        for number in np.flatnonzero(alike):
            chosen, rejected = (
                side.get(int(place)) for side, place in zip((first, second), places[number], strict=False)
            )
            alike[number] = is_same(chosen, rejected)
        if alike.any() and self._settings.bad_rows != "drop":
            bad = [(first.where(int(place)), SAME_TOKENS) for place in places[alike, 0]]
            raise DataError(list_bad_rows(bad, f"{len(bad):,} of {len(places):,} rows cannot be used."))
        if alike.all():
            raise DataError(f"all rows were dropped: {SAME_TOKENS}")
        return ~alike

    def __len__(self) -> int:
        return len(self._places)

    @property
    def report(self) -> DataReport:
        longest = self._settings.max_length
        numbers = np.arange(len(self))
        packed = plan_rows(self.lengths, numbers, longest) if self._settings.pack else SingleRows(numbers)
        padding = padding_share(self.lengths, packed, longest)
        shown = self._processor.show(self.get(0))
        return make_report(self._counts, self.lengths, self.loss_tokens, longest, padding, shown)

    def get(self, number: int, rng: np.random.Generator | None = None) -> Sample:
        """The chosen answer."""
        return self.answers(number)[0]

    def answers(self, number: int) -> list[Sample]:
        """Those of a row, the chosen one first."""
        return [side.get(int(place)) for side, place in zip(self._sides, self._places[number], strict=True)]

    def where(self, number: int) -> str:
        """File and line of the row."""
        return self._sides[0].where(int(self._places[number, 0]))

    def draw(self, seed: int, epoch: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
        """See `SampleSource`."""
        return draw_each_once(len(self), seed, rng, shuffle)

    def example_weights(self, in_context: Sequence[float]) -> Sequence[Sequence[float]]:
        return [in_context] * (len(self.source_bounds) - 1)


def _counts_of_rows(sides: Sequence[Prepared], num_whole: int, num_used: int) -> Counts:
    """What happened to the rows: to their chosen answers, and because of the others.

    num_whole: rows of which all answers are there; num_used: of these, those whose answers differ.
    """
    chosen, others = sides[0], [side.counts for side in sides[1:]]
    left_out = {
        "another of its answers is left out": len(chosen.rows) - num_whole,
        "its two answers are the same as tokens": num_whole - num_used,
    }
    shortened = {"another of its answers is shortened": sum(counts.truncated for counts in others)}
    return replace(
        chosen.counts,
        dropped=chosen.counts.dropped | {why: number for why, number in left_out.items() if number},
        examples=list(dict.fromkeys((where, reason) for side in sides for where, reason in side.counts.examples)),
        notes=chosen.counts.notes | {text: number for text, number in shortened.items() if number},
    )


def is_same(chosen: Sample, rejected: Sample) -> bool:
    """Whether two answers to a question have become the same tokens."""
    return np.array_equal(chosen.labels, rejected.labels) and all(
        name in rejected.inputs and np.array_equal(ids, rejected.inputs[name]) for name, ids in chosen.inputs.items()
    )


class _OneAnswer(DataSettings):
    @property
    def told_length(self) -> str:
        return f"its part of data.max_length is {self.max_length} (a row holds all answers, each with the question)"


def answer_settings(settings: DataSettings, answers: int) -> DataSettings:
    """How one of a row's answers is read: each may take an equal part of it."""
    return _OneAnswer.model_construct(**{**dict(settings), "max_length": max(settings.max_length // answers, 1)})


def prepare_pairs(
    files: Sequence[Path],
    processor: SampleProcessor,
    settings: DataSettings,
    *,
    sides: Sequence[Side] = ("chosen", "rejected"),
    tokenizer: Tokenizer,
    share: float = 1.0,
    limit: int | None = None,
) -> Pairs:
    """`prepare` of the answers of preference rows.

    Raises: as `prepare`.
    """
    each = answer_settings(settings, len(sides))
    prepared = [
        prepare(files, processor, each, tokenizer=tokenizer, share=share, limit=limit, side=side) for side in sides
    ]
    return Pairs(prepared, processor, settings)
