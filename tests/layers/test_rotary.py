"""Turning vectors: the length stays, and only the difference of positions counts."""

from __future__ import annotations

import torch

from hanlin.layers.rotary import inverse_frequencies, rotate_pairs


def turn(vectors: torch.Tensor, position: int, size: int) -> torch.Tensor:
    angles = position * inverse_frequencies(size, vectors.device).double()
    return rotate_pairs(vectors, angles.cos(), angles.sin())


def test_a_pair_of_neighbours_turns_by_its_angle() -> None:
    turned = rotate_pairs(torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0]), *torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert turned.tolist() == [0.0, 1.0, -1.0, 0.0, 5.0]


def test_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 8, dtype=torch.float64)
    near = turn(first, 3, 4) @ turn(second, 5, 4)
    torch.testing.assert_close(near, turn(first, 13, 4) @ turn(second, 15, 4))
    torch.testing.assert_close(turn(first, 7, 4).norm(), first.norm())
