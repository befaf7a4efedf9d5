"""Largest, least, spread and mean of each trained weight and its gradient, over all ranks that hold parts of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hanlin.core.device import has_fp64
from hanlin.parallel.mesh import Mesh, local


@dataclass(frozen=True)
class Statistics:
    """Of the numbers of one tensor; std: of a sample, as torch's (0 for a single number)."""

    max: float
    min: float
    std: float
    mean: float


@dataclass(frozen=True)
class ParameterStatistics:
    """Of one weight before the step, and of its gradient before clipping (None: it has none)."""

    weight: Statistics
    gradient: Statistics | None


_PIECE = 1 << 22
"""Numbers of a tensor that are looked at in fp64 at once."""
Sums = tuple[int, float, float, float, float]
"""Of a part of a tensor: how many numbers, their sum, the sum of their squares, the largest, the least."""


def parameter_statistics(
    counted: Mapping[str, torch.Tensor], mesh: Mesh, gradient_scale: float
) -> dict[str, ParameterStatistics]:
    """By the names of the weights, on every rank; every rank must call it.

    counted: what this rank holds of the weights, each part on one rank only; gradient_scale: by which their gradients
    were multiplied.
    """
    mine = {
        name: (_sums(weight), None if weight.grad is None else _sums(weight.grad, 1 / gradient_scale))
        for name, weight in counted.items()
    }
    parts: dict[str, list[tuple[Sums, Sums | None]]] = {}
    for held in mesh.gather("all", mine):
        for name, sums in held.items():
            parts.setdefault(name, []).append(sums)
    return {name: _of_parts(found) for name, found in parts.items()}


@torch.no_grad()
def _sums(tensor: torch.Tensor, factor: float = 1.0) -> Sums:
    part = local(tensor)
    if not part.numel():
        return 0, 0.0, 0.0, -math.inf, math.inf
    pieces = [_sums_of_piece(piece, factor) for piece in part.flatten().split(_PIECE)]
    sums, squares, highs, lows = zip(*pieces, strict=True)
    return part.numel(), math.fsum(sums), math.fsum(squares), max(highs), min(lows)


def _sums_of_piece(piece: torch.Tensor, factor: float) -> list[float]:
    numbers = (piece if has_fp64(piece.device) else piece.cpu()).double() * factor
    low, high = numbers.aminmax()
    return torch.stack((numbers.sum(), numbers.square().sum(), high, low)).tolist()


def _of_parts(parts: Sequence[tuple[Sums, Sums | None]]) -> ParameterStatistics:
    gradients = [gradient for _, gradient in parts if gradient is not None]
    return ParameterStatistics(_joined([weight for weight, _ in parts]), _joined(gradients) if gradients else None)


def _joined(parts: Iterable[Sums]) -> Statistics:
    counts, sums, squares, highs, lows = zip(*parts, strict=True)
    count, mean = sum(counts), math.fsum(sums) / sum(counts)
    variance = (math.fsum(squares) - count * mean**2) / max(count - 1, 1)
    if not math.isfinite(variance):  # max() would pass a NaN over, or not, by where it stands
        return Statistics(math.nan, math.nan, math.nan, math.nan)
    return Statistics(max(highs), min(lows), math.sqrt(max(variance, 0.0)), mean)
