"""The code in which 8-bit optimizers and NF4 keep numbers."""

from __future__ import annotations

import pytest
import torch

from hanlin.layers.dynamic_code import dynamic_code


@pytest.mark.parametrize("is_signed", [True, False])
def test_each_decade_has_twice_the_numbers_of_the_one_below(is_signed: bool) -> None:
    code = dynamic_code(is_signed=is_signed)
    assert len(code) == 256
    assert (code.diff() > 0).all()
    for decade in range(7):
        numbers = code[(code > 10.0 ** (decade - 7)) & (code < 10.0 ** (decade - 6))]
        assert len(numbers) == 2 ** (decade + (not is_signed))
        width = 0.9 * 10.0 ** (decade - 6) / len(numbers)
        torch.testing.assert_close(numbers.diff(), torch.full((len(numbers) - 1,), width), rtol=1e-3, atol=0.0)
    if is_signed:  # but for 1, which has no opposite
        assert code[:127].equal(-code[128:255].flip(0))


def test_it_is_the_published_one() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes, which is optional")
    for is_signed in (True, False):
        published = functional.create_dynamic_map(signed=is_signed)
        torch.testing.assert_close(dynamic_code(is_signed=is_signed), published.float().cpu())
