"""What `train.precision: auto` is on a device, and what a device is not asked for."""

from __future__ import annotations

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
    class Npu:
        @staticmethod
        def is_bf16_supported() -> bool:
            return knows

    monkeypatch.setattr(torch, "npu", Npu, raising=False)
    assert best_precision(torch.device("privateuseone", 0)) == "bf16"  # a name that says nothing about itself
    monkeypatch.setattr("hanlin.core.device.has_bf16", lambda _: knows)
    assert best_precision(torch.device("privateuseone", 0)) == wanted


def test_a_cpu_computes_in_fp32_and_in_bf16_if_asked() -> None:
    device = torch.device("cpu")
    assert best_precision(device) == "fp32"
    assert precision_problem("bf16", device) is None
