"""Adafactor (Shazeer & Stern 2018): of a matrix's squared gradients it keeps the means of rows and columns alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hanlin.recipe.settings import OptimizerSettings
from hanlin.training.optimizer import OptimizerSpec, WeightByWeight, WeightShape

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdafactorSettings(OptimizerSettings):
    name: Literal["adafactor"] = "adafactor"
    # The running means of squared gradients weigh the step's own by steps ** decay; decay is below 0.
    decay: float = Field(default=-0.8, lt=0)
    # The rate is min(train.lr, 1 / sqrt(steps)) times the root mean square of the weight, or times this if it is more.
    least_scale: float = Field(default=1e-3, gt=0)
    # Largest root mean square of an update before the rate.
    clip_update: float = Field(default=1.0, gt=0)
    # Decoupled weight decay.
    weight_decay: float = Field(default=0.0, ge=0)


class Adafactor(WeightByWeight):
    """p -= rate * scale(p) * gradient / sqrt(rows x columns / mean of the rows), as torch.optim.Adafactor computes it.

    Where a layout divides a weight, its sums go over the ranks.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: AdafactorSettings) -> None:
        import torch

        from hanlin.parallel.mesh import like, local

        # The running means of squared gradients: over rows and over columns of a matrix, of each element of a vector.
        super().__init__(parameters, ("rows", "columns", "square"))
        self.settings = settings
        for name, weight in parameters.items():
            for kind, dim in _kinds(weight.shape).items():
                whole, part = list(weight.shape), list(local(weight).shape)
                if dim is not None:
                    whole[dim] = part[dim] = 1
                zeros = torch.zeros(part, dtype=weight.dtype, device=weight.device)
                self.state[kind][name] = like(weight, zeros, whole)

    def update(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        from hanlin.parallel.mesh import local

        settings, mine, mine_grad = self.settings, local(weight), local(gradient)
        count = self.steps[name]
        update = self._square(name, weight, mine_grad, count**settings.decay).rsqrt_().mul_(mine_grad)
        factor = count.rsqrt().clamp(max=rate) * _root_mean_square(weight, mine).clamp(min=settings.least_scale)
        factor = factor / (_root_mean_square(weight, update) / settings.clip_update).clamp(min=1)
        mine.mul_(1 - rate * settings.weight_decay).sub_(update.mul_(factor))

    def _square(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """The running mean of this rank's squared gradients, or the matrix that stands for it, once more advanced."""
        import torch

        from hanlin.parallel.mesh import local, sum_over_shards

        tiny, squares, means = torch.finfo(weight.dtype).eps, gradient.square(), {}
        for kind, dim in _kinds(weight.shape).items():
            means[kind] = local(self.state[kind][name])
            new = squares if dim is None else sum_over_shards(weight, squares, [dim]) / weight.shape[dim]
            means[kind].lerp_(new, share)
        if "square" in means:
            return means["square"].clamp(min=tiny**2)
        rows, columns = means["rows"], means["columns"]
        mean = sum_over_shards(weight, rows, [weight.ndim - 2]) / weight.shape[-2]
        return (rows / mean.clamp(min=tiny) * columns).clamp_(min=tiny**2)


def _kinds(shape: Sequence[int]) -> dict[str, int | None]:
    """What is kept for a weight of this shape, and the dimension over which it is a mean."""
    return {"square": None} if len(shape) < 2 else {"rows": len(shape) - 1, "columns": len(shape) - 2}


def _root_mean_square(weight: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Of something with a weight's shape, of which this rank holds a part; a number without dimensions."""
    from hanlin.parallel.mesh import sum_over_shards

    return (sum_over_shards(weight, part.square(), range(part.ndim)).flatten()[0] / weight.numel()).sqrt()


def _state_bytes(settings: AdafactorSettings, weight: WeightShape) -> int:
    """fp32 numbers: one for each row and each column of a matrix, or for each element of a vector; a count of steps."""
    shape, numbers = weight.part, math.prod(weight.part)
    if len(shape) > 1:
        numbers = numbers // shape[-1] + numbers // shape[-2]
    return 4 * (numbers + 1)


def _step_bytes(settings: AdafactorSettings, weight: WeightShape) -> int:
    """The update and its squares, in fp32."""
    return 8 * math.prod(weight.part)


optimizer = OptimizerSpec(AdafactorSettings, Adafactor, _state_bytes, step_bytes=_step_bytes)
