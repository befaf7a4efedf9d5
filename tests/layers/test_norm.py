"""Norms against their formulas, in half precision as well."""

from __future__ import annotations

import pytest
import torch

from hanlin.layers.norm import LayerNorm, RmsNorm, WideRmsNorm


def test_the_wide_norm_applies_its_weight_before_the_cast() -> None:
    torch.manual_seed(0)
    hidden, norm = torch.randn(50, 64).half() * 3, WideRmsNorm(64, 1e-5).half()
    torch.nn.init.normal_(norm.weight)
    wide = hidden.float()
    expected = (norm.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5))).half()
    assert norm(hidden).equal(expected)
    narrow = RmsNorm(64, 1e-5).half()
    narrow.weight = norm.weight
    assert not narrow(hidden).equal(expected)


@pytest.mark.parametrize("kind", [WideRmsNorm, LayerNorm])
def test_a_wider_input_is_read_as_it_is_and_the_result_fits_the_weights(kind: type) -> None:
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    narrow = kind(16, 1e-5).bfloat16()(hidden)
    assert narrow.dtype == torch.bfloat16
    assert narrow.equal(kind(16, 1e-5)(hidden).bfloat16())
