from __future__ import annotations

import os
import subprocess
import sys

import pytest
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


FAULTS = """
import ctypes, resource, sys
from hanlin.core.device import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(1 << 26)
    ctypes.memset(block, 1, 1 << 26)
    library.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
@pytest.mark.parametrize(
    ("words", "variables", "keeps"),
    [(["keep"], {}, True), ([], {}, False), (["keep"], {"MALLOC_MMAP_THRESHOLD_": "1000000"}, False)],
    ids=["kept", "by itself", "as the user says"],
)
def test_what_is_freed_is_kept_for_the_next_step(words: list[str], variables: dict[str, str], keeps: bool) -> None:
    """Pages of 64 MB that the system had to give for a third time."""
    told = subprocess.run(
        [sys.executable, "-c", FAULTS, *words], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert (int(told.stdout) < 100) == keeps
