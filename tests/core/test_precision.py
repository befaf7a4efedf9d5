"""What `train.precision: auto` is on a device, and what a device is not asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hanlin.core.device import best_precision, precision_problem


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_cuda_computes_in_bf16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = torch.device("cuda", 0)
    assert best_precision(device) == wanted
    assert (precision_problem("bf16", device) is None) == (wanted == "bf16")
    assert precision_problem("fp16", device) is precision_problem("fp32", device) is None


@pytest.mark.parametrize(("knows", "wanted"), [(True, "bf16"), (False, "fp16")])
def test_an_npu_is_asked(monkeypatch: pytest.MonkeyPatch, knows: bool, wanted: str) -> None:
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_bf16_supported=lambda: knows), raising=False)
    device: Any = SimpleNamespace(type="npu")  # torch knows no such device here
    assert best_precision(device) == wanted
    assert (precision_problem("bf16", device) is None) == knows


def test_a_cpu_computes_in_fp32_and_in_bf16_if_asked() -> None:
    device = torch.device("cpu")
    assert best_precision(device) == "fp32"
    assert precision_problem("bf16", device) is None
