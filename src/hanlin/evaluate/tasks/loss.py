"""Mean loss per answer token, teacher forced: how surprised the model is by the gold answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from hanlin.core.batch import IGNORED, Sample
from hanlin.core.settings import GenerateSettings
from hanlin.generate.engine import Engine, naming

from .task import Numbered, Row, Task

# Batches that are encoded ahead and sorted by length together.
_BATCHES_AHEAD = 64


def predict(engine: Engine, numbered: Numbered, options: GenerateSettings, seed: int) -> Iterator[tuple[int, Row]]:
    """Yield {"loss": sum over the record's answer tokens, "tokens": their weight}."""
    for number, loss, tokens in sample_losses(engine, _samples(engine, numbered), options.batch_size):
        yield number, {"loss": loss, "tokens": tokens}


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    tokens = math.fsum(row["tokens"] for row in rows)
    loss = math.fsum(row["loss"] for row in rows) / tokens if tokens else math.nan
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens}


def sample_losses(
    engine: Engine, samples: Iterable[tuple[Any, Sample]], batch_size: int
) -> Iterator[tuple[Any, float, float]]:
    """Yield (name, summed loss, summed weight) of each named sample.

    Long samples go together, and only such as leave each other's loss alone.
    """
    samples = iter(samples)
    while ahead := list(islice(samples, _BATCHES_AHEAD * batch_size)):
        groups: dict[Hashable, list[tuple[Any, Sample]]] = defaultdict(list)
        for pair in sorted(ahead, key=lambda pair: -pair[1].length):
            groups[engine.samples.batch_key(pair[1])].append(pair)
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                yield from _batch_losses(engine, group[start : start + batch_size])


def _samples(engine: Engine, numbered: Numbered) -> Iterator[tuple[int, Sample]]:
    for number, record in numbered:
        with naming(number):
            yield number, engine.samples.sample(record)


def _batch_losses(engine: Engine, named_samples: Sequence[tuple[Any, Sample]]) -> Iterator[tuple[Any, float, float]]:
    rows = [[sample] for _, sample in named_samples]
    batch = engine.samples.collate(rows, named_samples[0][1].length).to(engine.device)
    with engine.inference():
        losses = engine.model(**batch.inputs, labels=batch.labels, reduction="none") * batch.weights
    tokens = (batch.weights * (batch.labels != IGNORED)).sum(-1)
    sums = losses.sum(-1)
    for (name, _), loss, weight in zip(named_samples, sums.tolist(), tokens.tolist(), strict=True):
        yield name, loss, weight


TASK = Task(predict, summarise)
