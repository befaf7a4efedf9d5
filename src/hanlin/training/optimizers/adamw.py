"""AdamW (Loshchilov & Hutter 2019, decoupled decay) on torch's fused kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from hanlin.recipe.settings import Fraction, OptimizerSettings
from hanlin.training.optimizer import OptimizerSpec, WeightShape

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamWSettings(OptimizerSettings):
    name: Literal["adamw"] = "adamw"
    # Share of the old value in each step's running mean of gradients, and in that of their squares.
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    # Added to the root of the mean square, by which a step is divided.
    eps: float = Field(default=1e-8, gt=0)
    # False: eps is added to the bias-corrected root; true: to the root before that, as transformers' own AdamW did,
    # with which the original ChatGLM2 was tuned (differs by 1 % in the first steps).
    eps_before_correction: bool = False
    # Decoupled weight decay, on matrices and embeddings only.
    weight_decay: float = Field(default=0.01, ge=0)
    # True: weight decay on all trained weights, norms included (as the original CPM-Bee does it).
    decay_all: bool = False

    @model_validator(mode="after")
    def _decays_something(self) -> Self:
        if self.decay_all and self.weight_decay == 0:
            raise ValueError("decay_all has no effect with weight_decay 0; remove one of them")
        return self


class AdamW:
    """p -= rate * mean / (sqrt(square) + eps) + rate * decay * p, with bias-corrected mean and square.

    Not torch.optim.AdamW, though the same kernel: that class loads torch's compiler (1.6 s before the first step) and
    keeps its state by number; here it is by name, so that any layout can read it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: AdamWSettings) -> None:
        import torch

        self.settings = settings
        self.parameters = dict(parameters)
        self.mean = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
        self.square = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
        # fp32 numbers beside the weights: the kernel wants them so.
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=weight.device) for name, weight in parameters.items()
        }

    def step(self, rate: float) -> None:
        """Change the weights that have a gradient."""
        names = [name for name, weight in self.parameters.items() if weight.grad is not None]
        decayed = [name for name in names if self.settings.decay_all or self.parameters[name].ndim >= 2]
        others = [name for name in names if not (self.settings.decay_all or self.parameters[name].ndim >= 2)]
        for eps, group in self._by_eps(decayed):
            self._update(group, rate, self.settings.weight_decay, eps)
        for eps, group in self._by_eps(others):
            self._update(group, rate, 0.0, eps)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state by flat names; to be saved, or loaded into."""
        kinds = {"mean": self.mean, "square": self.square, "steps": self.steps}
        return {f"{kind}.{name}": tensor for kind, named in kinds.items() for name, tensor in named.items()}

    def _by_eps(self, names: list[str]) -> list[tuple[float, list[str]]]:
        """The names with the eps that this step adds to their bias-corrected roots; one wait for the device at most."""
        import torch

        if not names:
            return []
        eps, beta = self.settings.eps, self.settings.betas[1]
        if not self.settings.eps_before_correction:
            return [(eps, names)]
        groups: dict[float, list[str]] = {}
        counts = torch.stack([self.steps[name] for name in names]).tolist()
        for name, count in zip(names, counts, strict=True):
            # The kernel divides the root by the correction, and eps is wanted beside the undivided one.
            groups.setdefault(eps / math.sqrt(1 - beta ** (count + 1)), []).append(name)
        return list(groups.items())

    def _update(self, names: list[str], rate: float, decay: float, eps: float) -> None:
        import torch
        from torch.optim.adamw import adamw

        from hanlin.parallel.mesh import local

        weights = [self.parameters[name] for name in names]
        with torch.no_grad():
            adamw(
                [local(weight) for weight in weights],
                [local(weight.grad) for weight in weights if weight.grad is not None],
                [local(self.mean[name]) for name in names],
                [local(self.square[name]) for name in names],
                [],
                [self.steps[name] for name in names],
                fused=True,
                amsgrad=False,
                beta1=self.settings.betas[0],
                beta2=self.settings.betas[1],
                lr=rate,
                weight_decay=decay,
                eps=eps,
                maximize=False,
            )


def _state_bytes(settings: AdamWSettings, weight: WeightShape) -> int:
    """Two fp32 numbers per element, and a count of steps."""
    return 4 * (2 * math.prod(weight.part) + 1)


optimizer = OptimizerSpec(AdamWSettings, AdamW, _state_bytes)
