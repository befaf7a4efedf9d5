"""Prepared samples -> batches: a pure function of (seed, epoch), so that (epoch, batch) is the whole state.

An epoch's rows are planned before its first batch. The global batches are the same for any number of ranks; a rank
takes its share of each. The last, smaller batch of an epoch is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Extent, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.pack import SampleNumbers, Shuffle, SingleRows, plan_rows, pool_rows
from hanlin.data.processor import JoinsExamples, SampleProcessor, SharesTable
from hanlin.data.sample_source import ComparesAnswers, SampleSource

NO_EXAMPLES = (1.0,)


@dataclass(frozen=True)
class _Epoch:
    """What an epoch draws: `drawn`, the samples, and the `passes` over the data that they belong to, each `[draws]`.

    rows: the draws of each row; examples: the samples that are shown before a draw, where there are any.
    """

    drawn: np.ndarray
    passes: np.ndarray
    rows: Sequence[SampleNumbers]
    examples: dict[int, list[int]]


class Loader:
    """Iterating gives the batches from the current position to the end of the epoch; the next time those of the next.

    batch_size: rows of a global batch. shuffle: False keeps the order of the files and draws nothing anew, so that all
    epochs are equal; once: one order for all epochs (`pack.shuffle_once`). rank, world: this process takes
    its share of each global batch.
    in_context: probabilities of 0, 1, 2, ... other samples of the same file before a sample. A source with an
    order of its own (a mixture) has its own of these as well.
    """

    def __init__(  # noqa: PLR0913 a batch is a function of all of these
        self,
        prepared: SampleSource,
        processor: SampleProcessor,
        *,
        max_length: int,
        batch_size: int,
        seed: int = 0,
        shuffle: Shuffle = True,
        pack: bool = True,
        in_context: Sequence[float] = NO_EXAMPLES,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.prepared, self.processor = prepared, processor
        self.max_length, self.batch_size = max_length, batch_size
        self.seed, self.pack = seed, pack
        self.shuffle: Shuffle = prepared.has_own_order or shuffle
        self.in_context = NO_EXAMPLES if prepared.has_own_order else tuple(in_context)
        self.rank, self.world = rank, world
        self.epoch = 0
        self.batch = 0
        self._planned: tuple[int, _Epoch] | None = None
        self._chances = self._example_chances()
        if self._chances.shape[1] > 1 and not isinstance(processor, JoinsExamples):
            raise ConfigError("data.in_context: this family has no in-context samples; leave it at [1.0]")
        assert int(prepared.lengths.max()) <= max_length, (prepared.lengths.max(), max_length)

    def __iter__(self) -> Iterator[Batch]:
        epoch, steps = self.epoch, self.steps_per_epoch(self.epoch)
        for number in range(self.batch, steps):
            batch = self._make_batch(epoch, number)
            self.epoch, self.batch = (epoch, number + 1) if number + 1 < steps else (epoch + 1, 0)
            yield batch

    def once(self, epoch: int = 0) -> Iterator[Batch]:
        """All batches of one epoch; the position stays. For evaluation."""
        for number in range(self.steps_per_epoch(epoch)):
            yield self._make_batch(epoch, number)

    def forever(self) -> Iterator[Batch]:
        """Batches without an end, epoch after epoch."""
        while True:
            yield from self

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Global batches of an epoch (they differ a little between epochs, as rows are packed anew)."""
        return -(-len(self._plan(epoch).rows) // self.batch_size)

    def where(self, batch: Batch) -> list[str]:
        """File and line of every row of the data set in a batch."""
        return [self.prepared.where(number) for row in batch.rows for number in row]

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from; the same for every rank and any number of ranks."""
        return {"epoch": self.epoch, "batch": self.batch, "data": self.prepared.identity, "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position.

        Raises: DataError when the data or what decides their order are not those of the state.
        """
        if state["data"] != self.prepared.identity:
            raise DataError(
                "the checkpoint was made with other training data (content, tokenizer or data settings changed; they "
                f"begin at {self.prepared.where(0)} now), so its position means nothing here; resume with the same "
                "data, begin anew (--restart), or start another run from its weights (another run.folder, and last/ "
                "of this one as model.base, or as model.adapter)"
            )
        order = self._order()
        changed = [name for name in order if _plain(state["order"].get(name)) != order[name]]
        if changed:
            was = ", ".join(f"{name}={state['order'].get(name)} (now {order[name]})" for name in changed)
            raise DataError(
                f"the checkpoint was made with {was}; resume with the same values, or begin anew (--restart)"
            )
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def _order(self) -> dict[str, Any]:
        """What decides the sequence of batches, besides the data."""
        names = ("seed", "max_length", "batch_size", "shuffle", "pack")
        return {**{name: getattr(self, name) for name in names}, "in_context": list(self.in_context)}

    def _plan(self, epoch: int) -> _Epoch:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan_anew(epoch))
        return self._planned[1]

    def _plan_anew(self, epoch: int) -> _Epoch:
        rng = np.random.default_rng([self.seed, epoch if self.shuffle else 0])
        drawn, passes = self.prepared.draw(self.seed, epoch, rng, self.shuffle)
        examples, places = self._draw_examples(rng, drawn), np.arange(len(drawn))
        if not self.pack and self.shuffle is not True:
            return _Epoch(drawn, passes, SingleRows(places), examples)
        lengths = self.prepared.lengths[drawn].astype(np.int64)
        for place, chosen in examples.items():
            lengths[place] += self.prepared.lengths[chosen].sum()
        if self.pack:
            return _Epoch(drawn, passes, plan_rows(lengths, places, self.max_length), examples)
        return _Epoch(drawn, passes, pool_rows(lengths, places, self.batch_size, rng), examples)

    def _example_chances(self) -> np.ndarray:
        """`[sources, most examples + 1]`: the probability of at most 0, 1, 2, ... examples."""
        weights = self.prepared.example_weights(self.in_context)
        chances = np.zeros((len(weights), max(map(len, weights))))
        for row, given in zip(chances, weights, strict=True):
            row[: len(given)] = given
        return np.cumsum(chances, 1) / chances.sum(1, keepdims=True)

    def _draw_examples(self, rng: np.random.Generator, drawn: np.ndarray) -> dict[int, list[int]]:
        """For each draw the others shown before it; the first that does not fit ends them."""
        most = self._chances.shape[1] - 1
        if not most:
            return {}
        bounds = self.prepared.source_bounds
        sources = np.searchsorted(bounds, drawn, side="right") - 1
        wanted = (rng.random((len(drawn), 1)) >= self._chances[sources, :-1]).sum(1)
        draws = rng.random((len(drawn), most))
        examples = {}
        for place in np.flatnonzero(wanted).tolist():
            number, source = int(drawn[place]), sources[place]
            begin, others = int(bounds[source]), int(bounds[source + 1] - bounds[source]) - 1
            chosen = begin + (draws[place, : wanted[place]] * others).astype(np.int64)
            chosen += chosen >= number  # a sample is no example of itself
            fitting = self._fitting(number, chosen if others else chosen[:0])
            if fitting:
                examples[place] = fitting
        return examples

    def _fitting(self, number: int, chosen: np.ndarray) -> list[int]:
        totals = self.prepared.lengths[number] + np.cumsum(self.prepared.lengths[chosen])
        return chosen[: int((totals <= self.max_length).sum())].tolist()

    def _make_batch(self, epoch: int, number: int) -> Batch:
        plan = self._plan(epoch)
        rows = plan.rows[number * self.batch_size : (number + 1) * self.batch_size]
        begin, end = (len(rows) * place // self.world for place in (self.rank, self.rank + 1))
        length = self.max_length if self.pack else max(self._length(row, plan) for row in rows)
        most_rows = -(-len(rows) // self.world)
        if begin == end:
            # A rank must run as many steps as the others: it gets a row that carries no loss.
            return replace(_without_loss(self._part(rows, 0, 1, plan, epoch, length)), most_rows=most_rows)
        return replace(self._part(rows, begin, end, plan, epoch, length), most_rows=most_rows)

    def _part(
        self, rows: Sequence[SampleNumbers], begin: int, end: int, plan: _Epoch, epoch: int, length: int
    ) -> Batch:
        if isinstance(self.processor, SharesTable) and self.processor.shares_table:
            return self._collate(rows, plan, epoch, length).part(begin, end)
        return self._collate(rows[begin:end], plan, epoch, length)

    def _collate(self, rows: Sequence[SampleNumbers], plan: _Epoch, epoch: int, length: int) -> Batch:
        numbers = [plan.drawn[row].tolist() for row in rows]
        if isinstance(self.prepared, ComparesAnswers):
            compared = [[answer for number in row for answer in self.prepared.answers(number)] for row in numbers]
            return replace(_with_answers(self.processor, compared, length), rows=numbers, extents=_extents(compared))
        made = [[self._sample(place, plan, epoch) for place in row] for row in rows]
        return replace(self.processor.collate(made, length), rows=numbers, extents=_extents(made))

    def _sample(self, place: int, plan: _Epoch, epoch: int) -> Sample:
        draws, number = self.shuffle and self.prepared.num_varying > 0, int(plan.drawn[place])
        rng = np.random.default_rng([self.seed, epoch, number, plan.passes[place]]) if draws else None
        main = self.prepared.get(number, rng)
        chosen = plan.examples.get(place)
        if not chosen:
            return main
        assert isinstance(self.processor, JoinsExamples)
        return self.processor.join(main, [self.prepared.get(example, rng) for example in chosen])

    def _length(self, row: SampleNumbers, plan: _Epoch) -> int:
        shown = [example for place in row for example in plan.examples.get(place, ())]
        return int(self.prepared.lengths[[*plan.drawn[row], *shown]].sum())


def _with_answers(processor: SampleProcessor, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
    """The batch of answers that are compared: it says whose each token is, and every learned one counts once."""
    # A family puts weights where the labels go, whatever they are: here they are the numbers of the answers.
    numbered = [
        [replace(answer, weights=(answer.weights > 0) * np.float32(number)) for number, answer in enumerate(row, 1)]
        for row in rows
    ]
    batch = processor.collate(numbered, length)
    answers = (batch.weights * (batch.labels != IGNORED)).long()
    return replace(batch, weights=(answers > 0).float(), answers=answers)


def _extents(rows: Sequence[Sequence[Sample]]) -> list[Extent]:
    return [Extent.total(sample.extent for sample in row) for row in rows]


def _without_loss(batch: Batch) -> Batch:
    import torch

    labels, weights = torch.full_like(batch.labels, IGNORED), torch.zeros_like(batch.weights)
    answers = None if batch.answers is None else torch.zeros_like(batch.answers)
    rows, extents = [() for _ in batch.rows], [Extent() for _ in batch.rows]
    return replace(batch, labels=labels, weights=weights, rows=rows, answers=answers, extents=extents)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
