"""How likely a model finds what samples want to be said: the log probability of all their learned tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hanlin.core.batch import IGNORED, Sample
from hanlin.generate.engine import Engine
from hanlin.generate.sampling import check_numbers

from .tasks.loss import by_batches

__all__ = ["Likelihood", "sample_likelihoods"]


@dataclass(frozen=True)
class Likelihood:
    """log_likelihood: natural logarithm of the probability of all tokens, in their order; tokens: how many."""

    log_likelihood: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Mean log likelihood of a token; what CPM-2 and `evaluate.tasks: [likelihood]` compare answers by."""
        return self.log_likelihood / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(-self.per_token, 700.0))


def sample_likelihoods(
    engine: Engine, samples: Iterable[tuple[int, Sample]], batch_size: int
) -> Iterator[tuple[int, Likelihood]]:
    """Yield (number, likelihood) of each numbered sample, the longest ones of a batch first."""
    yield from by_batches(engine, samples, batch_size, _of_batch)


def _of_batch(engine: Engine, numbered: Sequence[tuple[Any, Sample]]) -> list[tuple[Any, Likelihood]]:
    """Each learned token counts once, whatever its weight in training."""
    batch = engine.processor.collate([[sample] for _, sample in numbered], numbered[0][1].length).to(engine.device)
    counted = (batch.labels != IGNORED) & (batch.weights > 0)
    with engine.inference():
        losses = engine.model(**batch.inputs, labels=batch.labels, reduction="none") * counted
    sums = check_numbers(losses.sum(-1)).tolist()
    return [
        (number, Likelihood(-total, tokens))
        for (number, _), total, tokens in zip(numbered, sums, counted.sum(-1).tolist(), strict=True)
    ]
