"""What objectives of preference rows share: they are functions of the log likelihoods of a row's answers.

The model is asked for these first, without a gradient; a token's weight in the loss then is minus the slope of the
objective by the log likelihood of its answer. So an objective meets no layout, no head and no family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from hanlin.training.objective import RunStart, Weighed, mean_measures

if TYPE_CHECKING:
    import torch

    from hanlin.core.batch import Batch
    from hanlin.data.forms.content import Side
    from hanlin.data.loader import Loader
    from hanlin.parallel.parallel_model import ParallelModel

__all__ = ["PairObjective"]


class PairObjective:
    """An `Objective` of batches of pairs (data/pairs.py), over which it is a mean; `losses` is left to its subclasses.

    Measures: accuracy: share of the pairs whose chosen answer has the higher reward; margin: mean difference of the
    rewards; chosen_reward, rejected_reward: what the objective takes for the worth of the answers.
    """

    measures = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    uses_dropout = False

    def __init__(self, answers: Sequence[Side], *, has_reference: bool) -> None:
        """answers: of a row; has_reference: whether they are compared with the model that the run began with."""
        self.answers, self.has_reference = answers, has_reference
        self._references: Mapping[str, torch.Tensor] = {}

    def losses(self, scores: torch.Tensor, counts: torch.Tensor, unrelated: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each pair `[pairs]`, and the rewards of both answers `[2, pairs]`.

        scores: `[answers, pairs]`, log likelihoods, less those of the reference where there is one; counts: their
        tokens; unrelated: mean score of the unrelated answers of the whole step, 0 where there are none.
        """
        raise NotImplementedError

    def begin(self, parallel_model: ParallelModel, loaders: Mapping[str, Loader], start: RunStart) -> None:
        """Ask the model that the run begins with for all answers, once; the run's folder keeps it."""
        if self.has_reference:
            from hanlin.training.pair_likelihoods import reference

            self._references = reference(parallel_model, loaders, start, self.answers)

    def size(self, batch: Batch) -> float:
        return sum(map(len, batch.rows))

    def weigh(self, parallel_model: ParallelModel, parts: Sequence[Batch]) -> list[Weighed]:
        return self._weigh(parallel_model, parts, "train")

    def evaluate(self, parallel_model: ParallelModel, batches: Iterable[Batch], rows: int | None) -> dict[str, float]:
        found, size = [], 0.0
        for batch in batches:
            parts = parallel_model.split(batch, rows)
            found += [one.measured for one in self._weigh(parallel_model, parts, "valid") if one.measured is not None]
            size += sum(map(self.size, parts))
        return mean_measures(parallel_model, self.measures, found, size)

    def _weigh(
        self, parallel_model: ParallelModel, parts: Sequence[Batch], of: Literal["train", "valid"]
    ) -> list[Weighed]:
        from hanlin.training.pair_likelihoods import pair_likelihoods, weighed

        batches, table = [part.to(parallel_model.device) for part in parts], self._references.get(of)
        found = [pair_likelihoods(parallel_model, batch, len(self.answers)) for batch in batches]
        scores = [one.scores(table) for one in found]
        unrelated, result = self._mean_unrelated(parallel_model, scores), []
        for batch, one, score in zip(batches, found, scores, strict=True):
            losses, rewards = self.losses(score, one.counts, unrelated)
            loss, rewards = losses.sum(), rewards.detach()
            loss.backward()
            differences = rewards[0] - rewards[1]
            result.append(weighed(batch, one, [loss, (differences > 0).sum(), differences.sum(), *rewards.sum(1)]))
        return result

    def _mean_unrelated(self, parallel_model: ParallelModel, scores: Sequence[torch.Tensor]) -> float:
        """Over all ranks, so that no layout changes it."""
        if "unrelated" not in self.answers:
            return 0.0
        place = self.answers.index("unrelated")
        sums = [float(score[place].detach().sum()) for score in scores]
        total, count = parallel_model.sum_over_data([sum(sums), sum(score.shape[1] for score in scores)])
        return total / count
