"""Which kernels attention may use, and that the choice ends where it was made."""

from __future__ import annotations

import pytest
import torch

from hanlin.layers.attention import AttentionMask, attention
from hanlin.layers.attention_kernels import attention_kernels


def allowed() -> dict[str, bool]:
    kernels = torch.backends.cuda
    return {
        "cudnn": kernels.cudnn_sdp_enabled(),
        "flash": kernels.flash_sdp_enabled(),
        "efficient": kernels.mem_efficient_sdp_enabled(),
        "math": kernels.math_sdp_enabled(),
    }


@pytest.mark.parametrize(
    ("choice", "kind", "wanted"),
    [
        ("auto", "cuda", {"flash", "efficient", "math"}),
        ("auto", "cpu", {"cudnn", "flash", "efficient", "math"}),
        ("flash", "cuda", {"flash", "math"}),
        ("efficient", "cuda", {"efficient", "math"}),
        ("cudnn", "cuda", {"cudnn", "flash", "efficient", "math"}),
        ("math", "cpu", {"math"}),
    ],
)
def test_the_kernels_that_may_be_used(choice: str, kind: str, wanted: set[str]) -> None:
    before = allowed()
    with attention_kernels(torch.device(kind), choice):  # pyright: ignore
        assert {name for name, is_allowed in allowed().items() if is_allowed} == wanted
    assert allowed() == before


@pytest.mark.parametrize("choice", ["flash", "efficient", "cudnn", "math"])
def test_every_choice_computes_the_same(choice: str) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=draw) for _ in range(3))
    wanted = attention(query, key, value, AttentionMask())
    with attention_kernels(torch.device("cpu"), choice):  # pyright: ignore
        torch.testing.assert_close(attention(query, key, value, AttentionMask()), wanted)
