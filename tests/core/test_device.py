from __future__ import annotations

import torch

from hanlin.core.device import peak_memory_bytes


def test_the_most_memory_is_asked_of_the_device_s_own_module(monkeypatch):
    """torch's general function raises for an accelerator whose allocator torch does not know."""

    def unknown(*_):
        raise RuntimeError("Allocator for npu is not a DeviceAllocator")

    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", unknown)
    monkeypatch.setattr(torch.xpu, "max_memory_allocated", lambda device: {"xpu:1": 12345}[str(device)])
    assert peak_memory_bytes(torch.device("xpu", 1)) == 12345
    assert peak_memory_bytes(torch.device("mps")) == peak_memory_bytes(torch.device("cpu")) > 0  # mps counts none
