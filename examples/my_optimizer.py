"""Your own optimizer in one file: Lion (Chen et al. 2023), which steps by the sign of a running mean.

train: {lr: 3e-4, optimizer: {name: examples/my_optimizer.py, weight_decay: 0.1}}
"""

import math

import torch
from pydantic import Field

from hanlin.parallel.mesh import local
from hanlin.recipe.settings import Fraction, OptimizerSettings
from hanlin.training.optimizer import OptimizerSpec


class LionSettings(OptimizerSettings):
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)


class Lion:
    """p -= rate * (sign of the mean with the new gradient + decay * p); then the mean takes the gradient in."""

    def __init__(self, parameters, settings):
        self.parameters, self.settings = dict(parameters), settings
        self.mean = {name: torch.zeros_like(weight) for name, weight in parameters.items()}

    @torch.no_grad()
    def step(self, rate):
        early, late = self.settings.betas
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            # Under a layout this rank's part of each; Lion looks at no element beside the one it changes.
            weight, gradient, mean = local(parameter), local(parameter.grad), local(self.mean[name])
            weight.mul_(1 - rate * self.settings.weight_decay)
            weight.sub_(rate * torch.lerp(gradient, mean, early).sign())
            mean.lerp_(gradient, 1 - late)

    def tensors(self):
        return {f"mean.{name}": tensor for name, tensor in self.mean.items()}


def state_bytes(settings, weight):
    return 4 * math.prod(weight.part)


def step_bytes(settings, weight):
    return 8 * math.prod(weight.part)  # the mean with the new gradient, and its sign


optimizer = OptimizerSpec(LionSettings, Lion, state_bytes, step_bytes=step_bytes)
