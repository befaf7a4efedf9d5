"""The likelihood of what the rows say: the model's own loss, with the weights that the family gives each token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal

from hanlin.recipe.settings import ObjectiveSettings
from hanlin.training.objective import ObjectiveSpec, RunStart, Weighed

if TYPE_CHECKING:
    from hanlin.core.batch import Batch
    from hanlin.data.loader import Loader
    from hanlin.parallel.parallel_model import ParallelModel

_LOSSES_AT_ONCE = 64
"""Forward passes of an evaluation after which the host waits for their losses."""


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

    parts, sums, tokens = (part for batch in batches for part in parallel_model.split(batch, rows)), [], []
    while some := list(islice(parts, _LOSSES_AT_ONCE)):
        losses = [parallel_model.losses(part).flatten() for part in some]
        # Added on the host: not every device has fp64.
        there = torch.cat(losses).cpu().split([len(own) for own in losses])
        sums += [own.sum(dtype=torch.float64).item() for own in there]
        tokens += [part.loss_tokens for part in some]
    total, count = parallel_model.sum_over_data([math.fsum(sums), math.fsum(tokens)])
    return total / count


objective = ObjectiveSpec(LikelihoodSettings, lambda settings: LikelihoodObjective())
