"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306): each answer by itself is worth more or less than what is usual.

What is usual is how much likelier unrelated answers have become than they were by the model that the run began with: an
estimate of its distance, made of answers to other questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from hanlin.recipe.settings import ObjectiveSettings
from hanlin.training.objective import ObjectiveSpec
from hanlin.training.pair_objective import PairObjective

if TYPE_CHECKING:
    import torch


class KtoSettings(ObjectiveSettings):
    name: Literal["kto"] = "kto"
    # How much a gain in log likelihood counts; large values stay near the reference.
    beta: float = Field(default=0.1, gt=0)
    # Weight of the chosen answers in the loss.
    desirable_weight: float = Field(default=1.0, ge=0)
    # Weight of the rejected answers in the loss.
    undesirable_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _learns_something(self) -> KtoSettings:
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ValueError("desirable_weight and undesirable_weight are both 0, so nothing would be learned")
        return self


class Kto(PairObjective):
    """Of each pair the mean of its two answers' losses."""

    def __init__(self, settings: KtoSettings) -> None:
        super().__init__(objective.answers, has_reference=True)
        self.settings = settings

    def losses(self, scores: torch.Tensor, counts: torch.Tensor, unrelated: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PairObjective`."""
        import torch

        settings, usual = self.settings, max(unrelated, 0.0)
        chosen = settings.desirable_weight * (1 - torch.sigmoid(settings.beta * (scores[0] - usual)))
        rejected = settings.undesirable_weight * (1 - torch.sigmoid(settings.beta * (usual - scores[1])))
        return (chosen + rejected) / 2, settings.beta * scores[:2]


objective = ObjectiveSpec(KtoSettings, Kto, answers=("chosen", "rejected", "unrelated"))
