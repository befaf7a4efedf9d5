"""The objective of a student: its teacher reads each micro-batch just before it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from hanlin.core.batch import Batch
from hanlin.core.errors import ConfigError
from hanlin.layers.distillation import Imitation, Teacher, TeacherRows
from hanlin.layers.loss import Comparison, LabelledRows, comparing
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.training.objective import RunStart, Weighed, mean_measures

if TYPE_CHECKING:
    from hanlin.data.loader import Loader
    from hanlin.training.objectives.distill import DistillSettings

__all__ = ["Distillation"]


class Distillation:
    """An `Objective`; its loss is share x divergence + (1 - share) x that of the labels, each token by its weight.

    Only the hidden states that the teacher's head reads are kept, of one micro-batch. Measures: label_loss: of the
    rows' own tokens; divergence: from the teacher, in nats per token, times the square of the temperature.
    """

    measures = ("loss", "label_loss", "divergence")
    uses_dropout = True

    def __init__(self, settings: DistillSettings) -> None:
        self.settings = settings
        self._teacher: ParallelModel | None = None

    def begin(self, parallel_model: ParallelModel, loaders: Mapping[str, Loader], start: RunStart) -> None:
        """The teacher comes with the start."""
        assert start.teacher is not None, "no teacher"
        self._teacher = start.teacher

    def size(self, batch: Batch) -> float:
        return batch.loss_tokens

    def weigh(self, parallel_model: ParallelModel, parts: Sequence[Batch]) -> list[Weighed]:
        sums = [torch.zeros(len(self.measures), device=parallel_model.device) for _ in parts]
        return [
            Weighed(part, measured, partial(self._imitating, part, measured))
            for part, measured in zip(parts, sums, strict=True)
        ]

    def evaluate(self, parallel_model: ParallelModel, batches: Iterable[Batch], rows: int | None) -> dict[str, float]:
        found, size = [], 0.0
        for batch in batches:
            weighed = self.weigh(parallel_model, parallel_model.split(batch, rows))
            for one in weighed:
                assert one.around is not None, one
                assert one.measured is not None, one
                with one.around():
                    parallel_model.losses(one.batch)
                found.append(one.measured)
                size += self.size(one.batch)
        return mean_measures(parallel_model, self.measures, found, size)

    @contextmanager
    def _imitating(self, part: Batch, measured: torch.Tensor) -> Iterator[None]:
        """Let the teacher read a micro-batch, then compare the student with it."""
        rows, settings, asked = self._ask(part), self.settings, 0

        def compare(student: LabelledRows) -> Comparison:
            nonlocal asked
            asked += 1
            return Imitation(student, rows, settings.divergence, settings.temperature, settings.share, measured)

        with comparing(compare):
            yield
        _see_that(asked == 1)

    def _ask(self, part: Batch) -> TeacherRows:
        assert self._teacher is not None, "no teacher yet"
        teacher = Teacher()
        with comparing(teacher):
            self._teacher.losses(part)
        _see_that(teacher.rows is not None)
        assert teacher.rows is not None
        return teacher.rows


def _see_that(is_asked: bool) -> None:
    """Raises: ConfigError for rows or a model whose loss is not that of `head_loss`."""
    if not is_asked:
        raise ConfigError(
            "train.objective: the loss of these rows is no cross entropy over the vocabulary "
            "(hanlin.layers.loss.head_loss), so there is nothing in which to imitate a teacher; use likelihood"
        )
