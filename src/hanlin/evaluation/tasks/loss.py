"""Mean loss per answer token, teacher forced: how surprised the model is by the gold answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from hanlin.core.batch import IGNORED, Sample
from hanlin.evaluation.metrics.text import mean
from hanlin.evaluation.scorable import encode
from hanlin.generate.engine import Engine, batches_of, naming
from hanlin.generate.sampling import check_numbers
from hanlin.recipe.settings import GenerateSettings

from .task import Numbered, Prediction, Task

Result = TypeVar("Result")

# Batches that are encoded ahead and sorted by length together.
_BATCHES_AHEAD = 64


def predict(
    engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int
) -> Iterator[tuple[int, Prediction]]:
    """Yield {"loss": sum over the record's answer tokens, "tokens": their weight}."""
    for number, loss, tokens in sample_losses(engine, _samples(engine, numbered), options.batch_size):
        yield number, {"loss": loss, "tokens": tokens}


def summarise(rows: Sequence[Prediction]) -> dict[str, float]:
    """loss: per token; perplexity: its exponential; loss_by_record: mean of the records' own means."""
    tokens = math.fsum(row["tokens"] for row in rows)
    loss = math.fsum(row["loss"] for row in rows) / tokens if tokens else math.nan
    by_record = mean([row["loss"] / row["tokens"] for row in rows if row["tokens"]])
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "loss_by_record": by_record,
        "tokens": tokens,
    }


def sample_losses(
    engine: Engine, samples: Iterable[tuple[Any, Sample]], batch_size: int
) -> Iterator[tuple[Any, float, float]]:
    """Yield (name, summed loss, summed weight) of each named sample."""
    return by_batches(engine, samples, batch_size, batch_losses)


def by_batches(
    engine: Engine,
    samples: Iterable[tuple[Any, Sample]],
    batch_size: int,
    compute: Callable[[Engine, Sequence[tuple[Any, Sample]]], Sequence[Result]],
) -> Iterator[Result]:
    """What `compute` says of each named sample, the longest sample of a batch first."""
    for results in batch_by_batch(engine, samples, batch_size, compute):
        yield from results


def batch_by_batch(
    engine: Engine,
    samples: Iterable[tuple[Any, Sample]],
    batch_size: int,
    compute: Callable[[Engine, Sequence[tuple[Any, Sample]]], Sequence[Result]],
    most_positions: int | None = None,
) -> Iterator[Sequence[Result]]:
    """What `compute` says of the named samples of a batch, one batch after the other.

    Long samples go together, and only such as leave each other's loss alone. most_positions: of a batch with its
    padding, unless a sample alone has more; None: no limit.
    """
    samples = iter(samples)
    while ahead := list(islice(samples, _BATCHES_AHEAD * batch_size)):
        groups: dict[Hashable, list[tuple[Any, Sample]]] = defaultdict(list)
        for pair in sorted(ahead, key=lambda pair: -pair[1].length):
            groups[engine.processor.batch_key(pair[1])].append(pair)
        batches = [batch for group in groups.values() for batch in _batches(group, batch_size, most_positions)]
        yield from engine.shared(batches, lambda batch: compute(engine, batch))


def _batches(
    longest_first: Sequence[tuple[Any, Sample]], size: int, most_positions: int | None
) -> Iterator[Sequence[tuple[Any, Sample]]]:
    if most_positions is None:
        yield from batches_of(longest_first, size)
        return
    while longest_first:
        rows = max(1, min(size, most_positions // max(1, longest_first[0][1].length)))
        yield longest_first[:rows]
        longest_first = longest_first[rows:]


def _samples(engine: Engine, numbered: Numbered) -> Iterator[tuple[int, Sample]]:
    for number, record in numbered:
        with naming(number):
            yield number, encode(engine.processor, record, engine.max_length)


def batch_losses(engine: Engine, named_samples: Sequence[tuple[Any, Sample]]) -> list[tuple[Any, float, float]]:
    """(name, summed loss, summed weight) of each sample of a batch, the longest one first."""
    rows = [[sample] for _, sample in named_samples]
    batch = engine.processor.collate(rows, named_samples[0][1].length).to(engine.device)
    with engine.inference():
        losses = engine.model(**batch.inputs, labels=batch.labels, reduction="none") * batch.weights
    tokens = (batch.weights * (batch.labels != IGNORED)).sum(-1)
    names = [name for name, _ in named_samples]
    return list(zip(names, check_numbers(losses.sum(-1)).tolist(), tokens.tolist(), strict=True))


TASK = Task(predict, summarise)
