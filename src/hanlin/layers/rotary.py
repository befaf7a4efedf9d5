"""Rotation of vectors by angles that grow with a number (a position, or CPM-Bee's subscript)."""

from __future__ import annotations

import torch


def inverse_frequencies(size: int, device: torch.device, base: float = 10000.0) -> torch.Tensor:
    """base ** (-2j / size) for j = 0 .. size/2-1: `[size / 2]` fp32."""
    return 1.0 / base ** (torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


def rotate_halves(vectors: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn component j with component j + size/2 by angle j.

    vectors: `[..., size]`; angles: `[..., size / 2]`.
    """
    cosine, sine = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def rotate_pairs(vectors: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn component 2j with component 2j + 1 by angle j; components beyond the last angle stay as they are.

    vectors: `[..., size]`; cosine, sine: `[..., angles]` with 2 * angles <= size, in the dtype of the vectors.
    """
    size = 2 * cosine.shape[-1]
    first, second = vectors[..., 0:size:2], vectors[..., 1:size:2]
    turned = torch.stack((first * cosine - second * sine, second * cosine + first * sine), dim=-1).flatten(-2)
    return turned if size == vectors.shape[-1] else torch.cat((turned, vectors[..., size:]), dim=-1)
