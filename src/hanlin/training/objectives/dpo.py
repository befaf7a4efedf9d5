"""Learning from preferences: of two answers to a question the chosen one is to become likelier than the rejected one.

DPO (Rafailov et al. 2023, arXiv 2305.18290) and IPO (Azar et al. 2023, 2310.12036) compare with the model that the run
began with; SimPO (Meng et al. 2024, 2405.14734) and ORPO (Hong et al. 2024, 2403.07691) need no such reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from hanlin.recipe.settings import ObjectiveSettings
from hanlin.training.objective import ObjectiveSpec
from hanlin.training.pair_objective import PairObjective

if TYPE_CHECKING:
    import torch


class DpoSettings(ObjectiveSettings):
    name: Literal["dpo"] = "dpo"
    # sigmoid: DPO's; ipo: the square of what the difference per token lacks of 1 / (2 beta); simpo: DPO's of log
    # likelihoods per token, without a reference; orpo: likelihood of the chosen answer, and beta times the odds.
    loss: Literal["sigmoid", "ipo", "simpo", "orpo"] = "sigmoid"
    # How much a difference in log likelihood counts; large values stay near the reference. simpo, whose log likelihoods
    # are per token: 2 where nothing is said, of 2 to 10.
    beta: float = Field(default=0.1, gt=0)
    # sigmoid: the share of rows whose preference is assumed to be the wrong way round (conservative DPO).
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    # simpo: by how much the chosen answer has to be better.
    margin: float = Field(default=0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _by_loss(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("loss") == "simpo":
            return {"beta": 2.0, **values}
        return values

    @model_validator(mode="after")
    def _means_something(self) -> DpoSettings:
        for name, loss in (("label_smoothing", "sigmoid"), ("margin", "simpo")):
            if getattr(self, name) and self.loss != loss:
                raise ValueError(f"{name} has no effect on loss {self.loss}; it belongs to {loss}")
        return self


class Dpo(PairObjective):
    """Rewards are beta times the scores; of simpo and orpo, per token."""

    def __init__(self, settings: DpoSettings) -> None:
        super().__init__(objective.answers, has_reference=settings.loss in ("sigmoid", "ipo"))
        self.settings = settings

    def losses(self, scores: torch.Tensor, counts: torch.Tensor, unrelated: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PairObjective`."""
        import torch
        from torch.nn.functional import logsigmoid

        settings, means = self.settings, scores / counts
        beta = settings.beta
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
        return losses, beta * (scores if self.has_reference else means)


objective = ObjectiveSpec(DpoSettings, Dpo, answers=("chosen", "rejected"))
