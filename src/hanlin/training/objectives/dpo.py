"""Learning from preferences: of two answers to a question the chosen one is to become likelier than the rejected one.

DPO (Rafailov et al. 2023, arXiv 2305.18290) and IPO (Azar et al. 2023, 2310.12036) compare with the model that the run
began with; SimPO (Meng et al. 2024, 2405.14734) and ORPO (Hong et al. 2024, 2403.07691) need no such reference.

All are functions of the two answers' log likelihoods. The model is asked for these first, without a gradient; a token's
weight in the loss then is minus the slope of the objective by the log likelihood of its answer. So an objective meets
no layout, no head and no family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from hanlin.recipe.settings import ObjectiveSettings
from hanlin.training.objective import ObjectiveSpec, Weighed

if TYPE_CHECKING:
    import torch

    from hanlin.core.batch import Batch
    from hanlin.data.loader import Loader
    from hanlin.parallel.parallel_model import ParallelModel
    from hanlin.training.comparison import PairLikelihoods


class DpoSettings(ObjectiveSettings):
    name: Literal["dpo"] = "dpo"
    # sigmoid: DPO's; ipo: the square of what the difference per token lacks of 1 / (2 beta); simpo: DPO's of log
    # likelihoods per token, without a reference; orpo: likelihood of the chosen answer, and beta times the odds.
    loss: Literal["sigmoid", "ipo", "simpo", "orpo"] = "sigmoid"
    # How much a difference in log likelihood counts; large values stay near the reference (simpo: 2 to 10).
    beta: float = Field(default=0.1, gt=0)
    # sigmoid: the share of rows whose preference is assumed to be the wrong way round (conservative DPO).
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    # simpo: by how much the chosen answer has to be better.
    margin: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _means_something(self) -> DpoSettings:
        for name, loss in (("label_smoothing", "sigmoid"), ("margin", "simpo")):
            if getattr(self, name) and self.loss != loss:
                raise ValueError(f"{name} has no effect on loss {self.loss}; it belongs to {loss}")
        return self

    @property
    def has_reference(self) -> bool:
        """Whether it compares with the model that the run began with."""
        return self.loss in ("sigmoid", "ipo")


class Dpo:
    """An `Objective` of batches of pairs (data/pairs.py), for each of which it is a mean.

    Measures: accuracy: share of the pairs whose chosen answer has the higher reward; margin: mean difference of the
    rewards; chosen_reward, rejected_reward: beta times the log likelihood (simpo, orpo: per token), less that of the
    reference.
    """

    measures = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    uses_dropout = False

    def __init__(self, settings: DpoSettings) -> None:
        self.settings = settings
        self._references: Mapping[str, torch.Tensor] = {}

    def begin(
        self, parallel_model: ParallelModel, loaders: Mapping[str, Loader], folder: Path, *, goes_on: bool
    ) -> None:
        """Ask the model that the run begins with for all answers, once; the run's folder keeps it.

        Raises: CheckpointError for a run that goes on and has lost it.
        """
        if self.settings.has_reference:
            from hanlin.training.comparison import reference

            self._references = reference(parallel_model, loaders, folder, goes_on=goes_on)

    def size(self, batch: Batch) -> float:
        return sum(map(len, batch.rows))

    def weigh(self, parallel_model: ParallelModel, batch: Batch) -> Weighed:
        return self._weigh(parallel_model, batch, "train")

    def evaluate(self, parallel_model: ParallelModel, batches: Iterable[Batch], rows: int | None) -> dict[str, float]:
        import torch

        sums = torch.zeros(len(self.measures) + 1, dtype=torch.float64)
        for batch in batches:
            for part in parallel_model.split(batch, rows):
                found = self._weigh(parallel_model, part, "valid").measured
                assert found is not None
                sums += torch.tensor([*found.tolist(), self.size(part)], dtype=torch.float64)
        *totals, count = parallel_model.sum_over_data(sums.tolist())
        return {name: total / count for name, total in zip(self.measures, totals, strict=True)}

    def _weigh(self, parallel_model: ParallelModel, batch: Batch, part: str) -> Weighed:
        from hanlin.training.comparison import pair_likelihoods, weighed

        batch = batch.to(parallel_model.device)
        found = pair_likelihoods(parallel_model, batch)
        found.totals.requires_grad_()
        losses, rewards = pair_losses(self.settings, found, found.of(self._references.get(part)))
        loss = losses.sum()
        loss.backward()
        differences = (rewards[0] - rewards[1]).detach()
        measured = [loss, (differences > 0).sum(), differences.sum(), *rewards.sum(1)]
        return weighed(batch, found, measured)


def pair_losses(
    settings: DpoSettings, found: PairLikelihoods, reference: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each pair `[pairs]`, and the rewards of both answers `[2, pairs]`.

    reference: the log likelihoods `[2, pairs]` by the model that the run began with; None where it has no say.
    """
    import torch
    from torch.nn.functional import logsigmoid

    beta = settings.beta
    scores = found.totals if reference is None else found.totals - reference
    means = scores / found.counts
    match settings.loss:
        case "sigmoid":
            difference, wrong = beta * (scores[0] - scores[1]), settings.label_smoothing
            losses = -logsigmoid(difference) * (1 - wrong) - logsigmoid(-difference) * wrong
        case "ipo":
            losses = (means[0] - means[1] - 1 / (2 * beta)).square()
        case "simpo":
            losses = -logsigmoid(beta * (means[0] - means[1]) - settings.margin)
        case "orpo":
            # The odds of a likelihood of 1 are infinite; no answer comes so near that fp32 must tell.
            odds = means - torch.log1p(-means.clamp(max=-1e-6).exp())
            losses = -means[0] - beta * logsigmoid(odds[0] - odds[1])
    return losses, beta * (scores if settings.has_reference else means).detach()


objective = ObjectiveSpec(DpoSettings, Dpo, reads="preferences")
