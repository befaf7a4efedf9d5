"""The likelihood of what the rows say: the model's own loss, with the weights that the family gives each token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from hanlin.recipe.settings import ObjectiveSettings
from hanlin.training.objective import ObjectiveSpec, RunStart, Weighed

if TYPE_CHECKING:
    from hanlin.core.batch import Batch
    from hanlin.data.loader import Loader
    from hanlin.parallel.parallel_model import ParallelModel


class LikelihoodSettings(ObjectiveSettings):
    name: Literal["likelihood"] = "likelihood"


class LikelihoodObjective:
    """An `Objective`: the batch as it is."""

    measures = ()
    uses_dropout = True

    def begin(self, parallel_model: ParallelModel, loaders: Mapping[str, Loader], start: RunStart) -> None:
        """Nothing is compared with the model as it was."""

    def size(self, batch: Batch) -> float:
        return batch.loss_tokens

    def weigh(self, parallel_model: ParallelModel, parts: Sequence[Batch]) -> list[Weighed]:
        return [Weighed(part) for part in parts]

    def evaluate(self, parallel_model: ParallelModel, batches: Iterable[Batch], rows: int | None) -> dict[str, float]:
        return {"loss": mean_loss(parallel_model, batches, rows)}


def mean_loss(parallel_model: ParallelModel, batches: Iterable[Batch], rows: int | None = None) -> float:
    """The mean loss per loss token of the batches (this rank's share of each), over all ranks.

    rows: of a forward pass; None: all of a batch.
    """
    import torch

    parts = (part for batch in batches for part in parallel_model.split(batch, rows))
    # Added on the host: not every device has fp64.
    pairs = [(parallel_model.losses(part).cpu().sum(dtype=torch.float64).item(), part.loss_tokens) for part in parts]
    total, tokens = parallel_model.sum_over_data([math.fsum(column) for column in zip(*pairs, strict=True)])
    return total / tokens


objective = ObjectiveSpec(LikelihoodSettings, lambda settings: LikelihoodObjective())
