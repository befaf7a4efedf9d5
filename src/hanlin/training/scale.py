"""The loss scale of fp16: small gradients would vanish, so the loss is multiplied before the backward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hanlin.recipe.settings import TrainSettings


@dataclass(frozen=True)
class LossScale:
    """A factor that halves on overflow (not below `least`) and doubles after `patience` good steps in a row.

    patience 0: it never changes; hysteresis: overflows it takes to halve it for the first time after a doubling, as in
    Megatron and DeepSpeed (golden case cpm1_loss_scaler); consecutive: after a good step; spent: those that were had.
    """

    value: float = 1.0
    patience: int = 0
    good_steps: int = 0
    hysteresis: int = 1
    least: float = 1.0
    spent: int = 0
    consecutive: bool = False

    @classmethod
    def of(cls, settings: TrainSettings) -> LossScale:
        """The scale of a fresh run; 1 for ever unless the precision is fp16."""
        if settings.precision != "fp16":
            return cls()
        return cls(
            settings.loss_scale,
            settings.loss_scale_steps or 0,
            hysteresis=settings.loss_scale_hysteresis,
            least=settings.loss_scale_min,
            consecutive=settings.loss_scale_consecutive,
        )

    def after(self, is_finite: bool) -> LossScale:
        """The scale of the next step."""
        if not self.patience:
            return self
        if not is_finite and self.spent + 1 < self.hysteresis:
            return replace(self, good_steps=0, spent=self.spent + 1)
        if not is_finite:
            return replace(self, value=max(self.value / 2, self.least), good_steps=0)
        if self.good_steps + 1 == self.patience:
            return replace(self, value=self.value * 2, good_steps=0, spent=0)
        return replace(self, good_steps=self.good_steps + 1, spent=0 if self.consecutive else self.spent)
