"""How a model scores the options of polls: the numbers that the tasks likelihood and classify compare, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Sample
from hanlin.evaluation.tasks.classify import batch_scores
from hanlin.evaluation.tasks.loss import batch_by_batch, batch_losses
from hanlin.generate.engine import Engine

from .asking import Poll
from .reading_once import is_read_once, likelihoods_read_once

__all__ = ["OptionScores", "score_polls", "scored_in_steps"]


@dataclass(frozen=True)
class OptionScores:
    """What a model says of the options of a poll.

    scores: mean log likelihood of an option's tokens (`evaluate.tasks: [likelihood]`), or the logit of a label.
    tokens: of an option on average, with its end; 1 for labels.
    """

    scores: tuple[float, ...]
    tokens: float = 1.0

    @property
    def logits(self) -> np.ndarray:
        """`[options]`, whose softmax are the probabilities.

        Of options of one length it is the log likelihood itself, so that probabilities are the model's own; options of
        different lengths are compared by the mean over their tokens.
        """
        return np.array(self.scores) * self.tokens


def score_polls(engine: Engine, polls: Sequence[Poll], batch_size: int) -> list[OptionScores]:
    """The scores of polls, in their order."""
    *_, scored = [[], *scored_in_steps(engine, polls, batch_size)]
    return scored


def scored_in_steps(
    engine: Engine, polls: Sequence[Poll], batch_size: int, most_positions: int | None = None
) -> Iterator[list[OptionScores]]:
    """One batch of the model a step; the last one yields all scores, the others nothing.

    most_positions: of a step, unless an option alone has more; None: no limit.
    """
    found: dict[tuple[int, int], Any] = {}
    has_labels, count = any(poll.labels for poll in polls), sum(len(poll.samples) for poll in polls)
    alike = [] if has_labels else [n for n, poll in enumerate(polls) if is_read_once(engine, poll.samples)]
    for number in alike:
        for scores in likelihoods_read_once(engine, polls[number].samples, batch_size, most_positions):
            found |= {(number, place): score for place, score in enumerate(scores)}
            if len(found) < count:
                yield []
    others = [(number, poll) for number, poll in enumerate(polls) if number not in alike]
    samples = [((number, place), one) for number, poll in others for place, one in enumerate(poll.samples)]
    compute = _label_scores if has_labels else _likelihoods
    for results in batch_by_batch(engine, samples, batch_size, compute, most_positions):
        found |= results
        if len(found) < count:
            yield []
    yield [
        _scores_of(poll, [found[number, place] for place in range(len(poll.samples))])
        for number, poll in enumerate(polls)
    ]


def _likelihoods(engine: Engine, named: Sequence[tuple[Any, Sample]]) -> list[tuple[Any, float]]:
    return [(name, -loss / tokens) for name, loss, tokens in batch_losses(engine, named)]


def _label_scores(engine: Engine, named: Sequence[tuple[Any, Sample]]) -> list[tuple[Any, list[float]]]:
    return [(name, scores.tolist()) for name, scores in batch_scores(engine, named)]


def _scores_of(poll: Poll, found: Sequence[Any]) -> OptionScores:
    if poll.labels:
        [scores] = found
        return OptionScores(tuple(scores[label] for label in poll.labels))
    return OptionScores(tuple(found), sum(map(_count_learned, poll.samples)) / len(poll.samples))


def _count_learned(sample: Sample) -> int:
    return int(((sample.labels != IGNORED) & (sample.weights > 0)).sum())
