"""Accelerators by name: memory, arithmetic and links, as their makers state them (dense figures, no sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import nearest

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """memory_bytes: nominal; flops: peak FLOP/s of half-precision products with sums in fp32;
    link_bytes: per second and direction, to another device of the same machine."""

    name: str
    memory_bytes: int
    flops: float
    link_bytes: float


def _device(name: str, memory_gib: float, teraflops: float, link_gigabytes: float) -> Device:
    return Device(name, int(memory_gib * GIB), teraflops * 1e12, link_gigabytes * 1e9)


# NVIDIA: the data sheets of V100, A100, H100, H200 (SXM forms) and the Ada white paper for the RTX 4090 (165 TFLOP/s
# with fp32 sums; no link but PCIe 4.0 x16). A800, H800: A100, H100 with a link of 400 GB/s, both directions together.
# H20: 148 TFLOP/s, 96 GB, as NVIDIA's partners list it. V100 and Ascend 910A know fp16 only.
# Ascend: Huawei's Atlas 800 (910A: 256-320 TFLOP/s fp16, 32 GB, HCCS 30 GB/s per neighbour) and the Atlas 800T A2
# (910B3: 313 TFLOP/s fp16, 64 GB, HCCS 392 GB/s in both directions together); 910B4 is the 32 GB form.
_TABLE = (
    _device("V100-16", 16, 125, 150),
    _device("V100-32", 32, 125, 150),
    _device("RTX4090-24", 24, 165, 32),
    _device("A100-40", 40, 312, 300),
    _device("A100-80", 80, 312, 300),
    _device("A800-80", 80, 312, 200),
    _device("H20-96", 96, 148, 450),
    _device("H100-80", 80, 989, 450),
    _device("H800-80", 80, 989, 200),
    _device("H200-141", 141e9 / GIB, 989, 450),
    _device("910A-32", 32, 256, 30),
    _device("910B-32", 32, 280, 196),
    _device("910B-64", 64, 313, 196),
)
DEVICES = {device.name: device for device in _TABLE}


def find_device(name: str) -> Device:
    """The device of this name; upper and lower case, spaces and a maker's name in front do not matter.

    Raises: ConfigError that lists all.
    """
    wanted = _plain(name)
    for device in DEVICES.values():
        if wanted == _plain(device.name):
            return device
    raise ConfigError(f"--device: no device {name!r}{nearest(name, DEVICES)} (known: {', '.join(DEVICES)})")


def _plain(name: str) -> str:
    kept = "".join(letter for letter in name.upper() if letter.isalnum())
    return kept.removeprefix("NVIDIA").removeprefix("ASCEND").removesuffix("GB")
