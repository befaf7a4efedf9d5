"""Several data sets read by weight, as one `SampleSource`: what CPM-Bee is pretrained on.

An epoch draws as many samples as there are, each data set by its share of all weights. Within a data set a pass reads
each row once, in random order, and the next pass begins where the last one ended, in whatever epoch; with several
transforms a row takes the next one in each pass. So what an epoch draws depends on nothing but the seed and its number.
# differs: the original draws the data set of each sample, and the transform of each row, at random.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.mixture_file import MixtureEntry, read_mixture
from hanlin.data.pack import Shuffle
from hanlin.data.prepare import Prepared, prepare
from hanlin.data.processor import SampleProcessor
from hanlin.data.report import Counts, DataReport, DrawnSet
from hanlin.recipe.settings import DataSettings


class Mixture:
    """The samples of all data sets with random access, and what each epoch draws of them."""

    has_own_order = True

    def __init__(self, sets: Sequence[MixtureEntry], prepared: Sequence[Sequence[Prepared]]) -> None:
        """prepared: of each data set its rows in each of their forms (`MixtureEntry.ways`)."""
        self._sets, self._parts = sets, [part for parts in prepared for part in parts]
        self.source_bounds = np.cumsum([0, *map(len, self._parts)])
        """`[parts + 1]`: where the samples of each form of each data set begin."""
        firsts = np.cumsum([0, *(sum(map(len, parts)) for parts in prepared)]).tolist()
        self._pools = [_Pool(number, firsts[number], parts) for number, parts in enumerate(prepared)]
        self._shares = _shares(sets, [pool.pass_size for pool in self._pools])
        self.lengths = np.concatenate([part.lengths for part in self._parts])
        self.loss_tokens = np.concatenate([part.loss_tokens for part in self._parts])
        self.in_context = [one.incontext_weight for one, parts in zip(sets, prepared, strict=True) for _ in parts]
        """Per part, the probabilities of 0, 1, 2, ... worked examples."""
        facts = [self._shares, self.in_context, [part.identity for part in self._parts]]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        """Hash of all that decides what is drawn: where it is equal, a place in the data means the same."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_varying(self) -> int:
        return sum(part.num_varying for part in self._parts)

    def get(self, number: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample; with `rng` one that varies is encoded anew."""
        part, place = self._place(number)
        return part.get(place, rng)

    def where(self, number: int) -> str:
        """File and line of the row behind a sample."""
        part, place = self._place(number)
        return part.where(place)

    def draw(self, seed: int, epoch: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
        """The samples of an epoch in the order of `rng`, int64 `[draws]`, and the pass that each of them belongs to.

        A sample occurs once in a pass; the order is always drawn anew.
        """
        drawn = [
            pool.draw(seed, *_stretch(share * self._epoch_size, epoch))
            for pool, share in zip(self._pools, self._shares, strict=True)
        ]
        numbers, passes = (np.concatenate(column) for column in zip(*drawn, strict=True))
        order = rng.permutation(len(numbers))
        return numbers[order], passes[order]

    def example_weights(self, in_context: Sequence[float]) -> Sequence[Sequence[float]]:
        return self.in_context

    @property
    def report(self) -> DataReport:
        first = self._parts[0]
        report = first.report_of(_add([part.counts for part in self._parts]), self.lengths, self.loss_tokens)
        return replace(report, sets=list(self._drawn_sets()))

    @property
    def _epoch_size(self) -> float:
        """Draws of an epoch: a pass over every data set, were all weights equal."""
        return sum(pool.pass_size for pool in self._pools)

    def _drawn_sets(self) -> Iterator[DrawnSet]:
        for one, pool, share in zip(self._sets, self._pools, self._shares, strict=True):
            yield DrawnSet(one.name, share, share * self._epoch_size / pool.pass_size)

    def _place(self, number: int) -> tuple[Prepared, int]:
        part = int(np.searchsorted(self.source_bounds, number, side="right")) - 1
        return self._parts[part], number - int(self.source_bounds[part])


def open_mixture(settings: DataSettings, processor: SampleProcessor, *, tokenizer: Tokenizer) -> Mixture:
    """Encode the data sets of `data.mixture`, or take them from the cache; those of weight 0 are not looked at.

    Raises: ConfigError, DataError that lists the rows of all data sets that cannot be used.
    """
    assert settings.mixture is not None, settings
    sets = [one for one in read_mixture(settings.mixture) if one.is_drawn]
    prepared: list[list[Prepared]] = []
    problems = []
    for one in sets:
        prepared.append([])
        for way in one.ways:
            try:
                prepared[-1].append(_prepare(one, way, settings, processor, tokenizer))
            except DataError as error:
                problems.append(f"{one.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return Mixture(sets, prepared)


def _prepare(
    one: MixtureEntry, way: Any, settings: DataSettings, processor: SampleProcessor, tokenizer: Tokenizer
) -> Prepared:
    return prepare(
        [one.path],
        processor,
        settings.model_copy(update={"transform": way}),
        tokenizer=tokenizer,
        share=settings.train_share,
        limit=settings.train_limit,
    )


class _Pool:
    """The samples of one data set, row by row and form by form, read pass after pass without an end.

    number: of the data set; first: number of its first sample.
    """

    def __init__(self, number: int, first: int, parts: Sequence[Prepared]) -> None:
        self._number, self._first, self._num_ways = number, first, len(parts)
        self._rows = np.concatenate([part.rows for part in parts])
        self._ways = np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    @property
    def pass_size(self) -> float:
        """Samples of a pass; the mean, where forms of a row differ in their samples."""
        return len(self._rows) / self._num_ways

    def draw(self, seed: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples at these places of the stream of all passes, and the pass of each."""
        turns = self._turns(seed)
        bounds = np.cumsum([0, *np.bincount(turns, minlength=self._num_ways)])  # of the passes in a round of all forms
        rounds, place = divmod(begin, len(turns))
        turn = int(np.searchsorted(bounds, place, side="right")) - 1
        number, start = rounds * self._num_ways + turn, begin - place + int(bounds[turn])
        numbers, passes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < end:
            members = np.flatnonzero(turns == number % self._num_ways)
            order = np.random.default_rng([seed, self._number, number]).permutation(members)
            numbers.append(self._first + order[max(begin - start, 0) : end - start])
            passes.append(np.full(len(numbers[-1]), number))
            number, start = number + 1, start + len(members)
        return np.concatenate(numbers), np.concatenate(passes)

    def _turns(self, seed: int) -> np.ndarray:
        """In which of `ways` neighbouring passes each sample is read: a row begins with any form, then they rotate."""
        begins = np.random.default_rng([seed, self._number]).integers(self._num_ways, size=int(self._rows.max()) + 1)
        return (self._ways - begins[self._rows]) % self._num_ways


def _stretch(per_epoch: float, epoch: int) -> tuple[int, int]:
    """The places of a stream that an epoch takes; over many epochs no fraction gets lost."""
    return round(epoch * per_epoch), round((epoch + 1) * per_epoch)


def _shares(sets: Sequence[MixtureEntry], sizes: Sequence[float]) -> list[float]:
    weights = [
        one.weight * size if one.abs_weight is None else one.abs_weight for one, size in zip(sets, sizes, strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


def _add(parts: Sequence[Counts]) -> Counts:
    return Counts(
        in_files=sum(part.in_files for part in parts),
        rows=sum(part.rows for part in parts),
        read=sum(part.read for part in parts),
        dropped=dict(sum((Counter(part.dropped) for part in parts), Counter())),
        examples=[example for part in parts for example in part.examples],
        truncated=sum(part.truncated for part in parts),
        cut_tokens=sum(part.cut_tokens for part in parts),
        split=sum(part.split for part in parts),
        parts=sum(part.parts for part in parts),
        notes=dict(sum((Counter(part.notes) for part in parts), Counter())),
        unknown=[sum(column) for column in zip(*(part.unknown for part in parts if part.unknown), strict=True)],
        read_as=dict(sum((Counter(part.read_as) for part in parts), Counter())),
    )
