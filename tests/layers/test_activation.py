"""GELU by the error function where the device has none, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hanlin.layers.activation import _ErfGelu, gelu

NUMBERS = torch.tensor([-9.0, -3.0, -1.0, -0.1, 0.0, 1e-3, 0.5, 2.0, 6.0])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_values_and_gradients_are_torchs(dtype: torch.dtype, near: float) -> None:
    found, expected = (NUMBERS.to(dtype, copy=True).requires_grad_() for _ in range(2))
    ours, theirs = _ErfGelu.apply(found), functional.gelu(expected)
    for result in (ours, theirs):
        result.square().sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=near, atol=near)
    torch.testing.assert_close(found.grad, expected.grad, rtol=near, atol=near)


def test_elsewhere_it_is_torchs() -> None:
    assert gelu(NUMBERS).equal(functional.gelu(NUMBERS))
    assert gelu(NUMBERS, "tanh").equal(functional.gelu(NUMBERS, approximate="tanh"))
