"""Weights that are trained in bf16: an optimizer changes them in fp32, and what comes of it is rounded by chance.

Rounded to the nearest, most changes would be lost: a bf16 number has 8 bits, so what is less than 1/512 of a weight
leaves it as it was. Rounded up as often as what was cut off is large, a weight is right on average (Zamirai et al.
2020, "Revisiting BFloat16 Training"). The random numbers follow from the seed, the step, and the name and the place of
a number in its weight: a run that goes on, any layout and any device round alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils import swap_tensors

from hanlin.parallel.mesh import like, local, offset_of

if TYPE_CHECKING:
    from hanlin.training.optimizer import Optimizer

GROUP_NUMBERS = 2**26
"""Numbers that are fp32 at once, with their gradients."""
_PIECE = 2**22
"""Numbers that are rounded at once."""
_FP32 = 4


class RoundedOptimizer:
    """An `Optimizer` of bf16 weights: another one, whose weights are fp32 while it changes them.

    updates: steps that were made before; whoever goes on from a checkpoint says it.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], build: Callable[[Mapping[str, nn.Parameter]], Optimizer], seed: int
    ) -> None:
        """build: makes the optimizer of fp32 weights, of which it learns the shapes, and later the values."""
        self.weights, self.seed, self.updates = dict(weights), seed, 0
        self._wide = {name: _empty(weight) for name, weight in weights.items()}
        self._optimizer = build(self._wide)  # pyright: ignore[reportArgumentType]  # as good as parameters

    def step(self, rate: float) -> None:
        """Change the weights that have a gradient."""
        with torch.no_grad():
            for names in self._groups():
                for name in names:
                    self._widen(name)
                self._optimizer.step(rate)
                for name in names:
                    self._round(name)
        self.updates += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state of the optimizer; rounding has none."""
        return self._optimizer.tensors()

    def _groups(self) -> Iterator[list[str]]:
        """The weights that have a gradient; the optimizer leaves those of other groups alone, which have none then."""
        names: list[str] = []
        room = GROUP_NUMBERS
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            size = local(weight).numel()
            if names and size > room:
                yield names
                names, room = [], GROUP_NUMBERS
            names.append(name)
            room -= size
        yield names

    def _widen(self, name: str) -> None:
        weight, wide = self.weights[name], self._wide[name]
        assert weight.grad is not None
        swap_tensors(wide, like(weight, local(weight).float(), weight.shape))
        wide.grad = like(weight, local(weight.grad).float(), weight.shape)

    def _round(self, name: str) -> None:
        weight, wide = self.weights[name], self._wide[name]
        round_by_chance(local(wide), local(weight), weight, key_of(self.seed, self.updates, name))
        wide.grad = None
        swap_tensors(wide, _empty(weight))


def step_bytes(numbers: int, largest: int, changing: int) -> int:
    """What a step holds besides bf16 weights, their gradients and the optimizer's state.

    numbers: of all weights; largest: of one; changing: bytes that the optimizer needs to change that one.
    """
    widened = 2 * _FP32 * max(largest, min(GROUP_NUMBERS, numbers))
    # A piece's places, mixed twice; and those of the piece before.
    rounding = _FP32 * (3 + (largest > _PIECE)) * min(_PIECE, largest)
    return widened + max(rounding, changing)


def key_of(seed: int, step: int, name: str) -> int:
    """What the random numbers of a weight in a step follow from: an int32."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {name}".encode()).digest()[:4], "little", signed=True)


def round_by_chance(numbers: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, key: int) -> None:
    """Write finite fp32 numbers, which are spoilt, into a bf16 tensor: each to one of its two neighbours.

    target: what this rank holds of `weight`.
    """
    # One without dimensions is a row by itself.
    whole, start = (weight.shape, offset_of(weight)) if weight.ndim else ((1,), (0,))
    numbers, target = torch.atleast_1d(numbers), torch.atleast_1d(target)
    rows = max(1, _PIECE * len(numbers) // max(numbers.numel(), 1))
    for first in range(0, len(numbers), rows):
        part = numbers[first : first + rows]
        places = _places(part.shape, (start[0] + first, *start[1:]), whole, part.device)
        # What is cut off, as a number of 16 bits, and one of equal probabilities make a 1 above them or not.
        bits = part.view(torch.int32).add_(_mixed(places.add_(key)) & 0xFFFF) & -(2**16)
        target[first : first + rows].copy_(bits.view(torch.float32))


def _places(shape: Sequence[int], start: Sequence[int], whole: Sequence[int], device: torch.device) -> torch.Tensor:
    """The numbers of elements in the whole tensor, counted row by row; int32, beyond which they begin anew."""
    found = torch.zeros((), dtype=torch.int32, device=device)
    for dim, (length, first) in enumerate(zip(shape, start, strict=True)):
        stride = math.prod(whole[dim + 1 :])
        steps = torch.arange(length, dtype=torch.int32, device=device).mul_(_int32(stride)).add_(_int32(first * stride))
        found = found[..., None] + steps
    return found


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """int32 numbers without any order, from such in order (in place): `lowbias32` of Wellons' "hash prospector"."""
    numbers ^= (numbers >> 16) & 0xFFFF
    numbers *= 0x7FEB352D
    numbers ^= (numbers >> 15) & 0x1FFFF
    numbers *= _int32(0x846CA68B)
    numbers ^= (numbers >> 16) & 0xFFFF
    return numbers


def _int32(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def _empty(weight: torch.Tensor) -> torch.Tensor:
    """An fp32 tensor of a weight's shape that takes no memory."""
    part = local(weight)
    nothing = torch.zeros((), dtype=torch.float32, device=part.device).expand(part.shape)
    return like(weight, nothing, weight.shape)
