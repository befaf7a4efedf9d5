"""The learning rate of a step, and AdamW (Loshchilov & Hutter 2019, decoupled decay) on torch's fused kernel.

The standard schedules are BMTrain's (golden case bee_noam); the others are in schedules.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.adamw import adamw

from hanlin.parallel.mesh import local
from hanlin.recipe.settings import TrainSettings
from hanlin.train.schedules import Curve, endless_rate, floored_rate

EXPONENTIAL_BASE = 0.95


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """The rate of optimiser step `step` (counted from 1) of `total_steps`.

    linear and cosine are at 0 at `decay_steps`, by default just after the last step.
    """
    if settings.schedule_form != "standard":
        curve = floored_rate if settings.schedule_form == "floored" else endless_rate
        return curve(Curve.of(settings, total_steps), step - 1)
    number = step - 1 if settings.first_step_at_zero else step
    last = total_steps - 1 if settings.first_step_at_zero else total_steps
    end = settings.decay_steps or last + 1
    peak, warmup = settings.lr, settings.warmup_steps
    if settings.schedule == "noam":
        return _noam(peak, number, warmup)
    if number < warmup:
        return peak * number / warmup
    since, span = number - warmup, max(end - warmup, 1)
    if settings.schedule == "linear":
        return max(peak * (end - number) / span, 0.0)
    if settings.schedule == "cosine":
        # kept: after its end the rate rises again (bee_noam).
        return peak * 0.5 * (1 + math.cos(math.pi * since / span))
    return peak * EXPONENTIAL_BASE**since if settings.schedule == "exponential" else peak


def _noam(peak: float, number: int, warmup: int) -> float:
    if number < warmup:
        return peak * number / warmup**1.5
    return peak / math.sqrt(number) if number else 0.0


class AdamW:
    """p -= rate * mean / (sqrt(square) + eps) + rate * decay * p, with bias-corrected mean and square.

    Not torch.optim.AdamW, though the same kernel: that class loads torch's compiler (1.6 s before the first step) and
    keeps its state by number; here it is by name, so that any layout can read it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
        self.settings = settings
        self.parameters = dict(parameters)
        self.mean = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
        self.square = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
        # fp32 numbers beside the weights: the kernel wants them so.
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=weight.device) for name, weight in parameters.items()
        }

    @torch.no_grad()
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
        if not names:
            return []
        eps, beta = self.settings.eps, self.settings.betas[1]
        if self.settings.adamw == "standard":
            return [(eps, names)]
        groups: dict[float, list[str]] = {}
        counts = torch.stack([self.steps[name] for name in names]).tolist()
        for name, count in zip(names, counts, strict=True):
            # The kernel divides the root by the correction, and eps is wanted beside the undivided one.
            groups.setdefault(eps / math.sqrt(1 - beta ** (count + 1)), []).append(name)
        return list(groups.items())

    def _update(self, names: list[str], rate: float, decay: float, eps: float) -> None:
        weights = [self.parameters[name] for name in names]
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
