"""Muon (Jordan 2024): a matrix is changed by its momentum, with all singular values made about 1; the rest by AdamW.

What AdamW keeps are weights without two dimensions and what stands outside of the blocks: embeddings, positions, the
head. Updates are as large as AdamW's on average (Liu et al. 2025, "Muon is Scalable for LLM Training"), so both share
a rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hanlin.core.device import has_bf16
from hanlin.recipe.settings import Fraction, OptimizerSettings
from hanlin.training.optimizer import OptimizerSpec, WeightShape, is_in_block
from hanlin.training.optimizers.adamw import AdamW, AdamWSettings
from hanlin.training.optimizers.adamw import optimizer as adamw

if TYPE_CHECKING:
    import torch
    from torch import nn

_ITERATIONS = 5
_FACTORS = 3.4445, -4.7750, 2.0315  # of the 1st, 3rd and 5th power; they bring small singular values up fast
_EPS = 1e-7
_AS_ADAMW = 0.2  # the root mean square of AdamW's updates, as Liu et al. measured it


class MuonSettings(OptimizerSettings):
    name: Literal["muon"] = "muon"
    # Share of the old value in each step's momentum of a matrix.
    momentum: Fraction = 0.95
    # Share of the old value in each step's running mean of gradients, and in that of their squares.
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    # Added to the root of the mean square, by which a step is divided.
    eps: float = Field(default=1e-8, gt=0)
    # Decoupled weight decay, on matrices and embeddings only.
    weight_decay: float = Field(default=0.01, ge=0)


class Muon:
    """matrix -= rate * 0.2 * sqrt(longer side) * orthogonal(gradient with momentum) + rate * decay * matrix.

    The numbers of torch.optim.Muon with match_rms_adamw. Under a layout every rank that holds a part of a matrix
    gathers its momentum.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: MuonSettings) -> None:
        import torch

        self.settings = settings
        self.matrices = {
            name: weight
            for name, weight in parameters.items()
            if _is_matrix(WeightShape(weight.shape, weight.shape, is_in_block(name)))
        }
        self.momentum = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}
        others = {name: weight for name, weight in parameters.items() if name not in self.matrices}
        self.others = AdamW(others, _of_others(settings))

    def step(self, rate: float) -> None:
        """Change the weights that have a gradient."""
        import torch

        with torch.no_grad():
            for name, weight in self.matrices.items():
                if weight.grad is not None:
                    self._change(weight, weight.grad, self.momentum[name], rate)
        self.others.step(rate)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state by flat names; to be saved, or loaded into."""
        return {**{f"momentum.{name}": tensor for name, tensor in self.momentum.items()}, **self.others.tensors()}

    def _change(self, weight: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor, rate: float) -> None:
        from hanlin.parallel.mesh import gathered, like, local, own_part

        share = self.settings.momentum
        local(momentum).lerp_(local(gradient), 1 - share)
        ahead = local(gradient).lerp(local(momentum), share)  # Nesterov's
        update = own_part(weight, _orthogonal(gathered(like(weight, ahead, weight.shape))))
        size = rate * _AS_ADAMW * math.sqrt(max(weight.shape))
        local(weight).mul_(1 - rate * self.settings.weight_decay).sub_(update, alpha=size)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Near to its nearest orthogonal matrix, by Newton and Schulz's iteration in bf16, in fp32 where there is none."""
    import torch

    is_tall = matrix.shape[0] > matrix.shape[1]
    first, third, fifth = _FACTORS
    found = matrix.to(torch.bfloat16 if has_bf16(matrix.device) else torch.float32)
    found = found.T if is_tall else found
    found = found / found.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        squares = found @ found.T
        found = torch.addmm(found, torch.addmm(squares, squares, squares, beta=third, alpha=fifth), found, beta=first)
    return found.T if is_tall else found


def _is_matrix(weight: WeightShape) -> bool:
    return len(weight.whole) == 2 and weight.is_in_block


def _of_others(settings: MuonSettings) -> AdamWSettings:
    return AdamWSettings(betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


def _state_bytes(settings: MuonSettings, weight: WeightShape) -> int:
    """An fp32 number per element of a matrix, which has no count of steps; of others what AdamW keeps."""
    if _is_matrix(weight):
        return 4 * math.prod(weight.part)
    return adamw.state_bytes(_of_others(settings), weight)


def _step_bytes(settings: MuonSettings, weight: WeightShape) -> int:
    """Of a whole matrix its momentum in fp32, where it is gathered, and two iterates in bf16; the squares are small."""
    if not _is_matrix(weight):
        return 0
    short = min(weight.whole)
    return 4 * math.prod(weight.part) + 8 * math.prod(weight.whole) + 6 * short * short


optimizer = OptimizerSpec(MuonSettings, Muon, _state_bytes, step_bytes=_step_bytes)
