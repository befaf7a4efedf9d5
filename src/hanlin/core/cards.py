"""Accelerators by name, as their makers state them: memory, arithmetic, bandwidth, links, what their kernels can do.

Figures are dense (no sparsity) and those with sums in fp32, which is how torch multiplies; of consumer cards they are
half of what advertisements say. From NVIDIA:

- V100, T4, A10, A30, A40, L4, L40, L40S, A100, H100, H200, RTX A5000, RTX 6000 Ada: their data sheets (SXM forms where
  there are several); RTX 2080 Ti: the Turing white paper; RTX A6000 and 30: the Ampere GA102 white paper; RTX 40: the
  Ada white paper; RTX 50: the Blackwell white paper; B200: the data sheet of HGX B200, by one of its eight. Cards
  without NVLink talk over PCIe x16 (3.0: 16, 4.0: 32, 5.0: 64 GB/s; the RTX 4060 Ti has 8 lanes).
- A800, H800: A100, H100 with a link of 400 GB/s, both directions together. H20 (148 TFLOP/s, 96 GB, 4 TB/s), L20 and
  RTX 4090 D: as NVIDIA's partners list them.

From Huawei: Atlas 800 (910A: 256 TFLOP/s fp16, 32 GB, 1.2 TB/s, HCCS 30 GB/s per neighbour), Atlas 800T A2 (910B3: 313
TFLOP/s, 64 GB, 1.6 TB/s, HCCS 392 GB/s in both directions together; 910B4: 280 TFLOP/s, 32 GB, 0.8 TB/s), and for the
A3 one of the two dies of a 910C, which torch sees as a device of its own: 376 TFLOP/s, 64 GB, 1.6 TB/s, 196 GB/s
("Serving Large Language Models on Huawei CloudMatrix384", 2025). fp32 products of the Ascends are taken as a quarter of
these, as a 910B3's are (75 TFLOP/s): their makers state no others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hanlin.core.device import AMPERE

GIB = 1 << 30

_A2 = 2


@dataclass(frozen=True)
class Device:
    """version: CUDA's compute capability, 80 for 8.0; of an Ascend 1 (910A), 2 (A2) or 3 (A3); memory_bytes: what its
    driver leaves of it to programs, which is less than the name says where ECC takes some;
    flops, fp32_flops: peak FLOP/s of products in half precision and in fp32; bandwidth: bytes per second from and to
    its memory; link_bytes: per second and direction, to another device of the same machine.
    """

    name: str
    kind: Literal["cuda", "npu"]
    version: int
    memory_bytes: int
    flops: float
    fp32_flops: float
    bandwidth: float
    link_bytes: float

    @property
    def has_bf16(self) -> bool:
        """As `core.device.has_bf16` says it of a device that is there."""
        return self.version >= (AMPERE if self.kind == "cuda" else _A2)

    @property
    def has_flash(self) -> bool:
        """torch's flash attention asks for sm80; torch_npu's fused attention for an A2."""
        return self.has_bf16

    @property
    def is_small(self) -> bool:
        """Consumer and inference cards, which have less shared memory."""
        return self.kind == "cuda" and (86 <= self.version <= 89 or self.version >= 120)

    def peak(self, precision: Literal["fp32", "bf16", "fp16"]) -> float:
        """FLOP/s of products in it."""
        return self.fp32_flops if precision == "fp32" else self.flops


def _cuda(
    name: str, version: int, gib: float, teraflops: tuple[float, float], gigabytes: tuple[float, float]
) -> Device:
    """teraflops: in half precision, in fp32; gigabytes: per second of its memory, of its link."""
    half, full = teraflops
    memory, link = gigabytes
    return Device(name, "cuda", version, int(gib * GIB), half * 1e12, full * 1e12, memory * 1e9, link * 1e9)


def _npu(name: str, version: int, gib: float, teraflops: float, gigabytes: tuple[float, float]) -> Device:
    memory, link = gigabytes
    half = teraflops * 1e12
    return Device(name, "npu", version, int(gib * GIB), half, half / 4, memory * 1e9, link * 1e9)


_TABLE = (
    _cuda("T4-16", 75, 15, (65, 8.1), (300, 16)),
    _cuda("V100-16", 70, 16, (125, 15.7), (900, 150)),
    _cuda("V100-32", 70, 32, (125, 15.7), (900, 150)),
    _cuda("RTX3080-10", 86, 10, (59.5, 29.8), (760, 32)),
    _cuda("RTX2080TI-11", 75, 11, (53.8, 13.4), (616, 16)),
    _cuda("RTX3060-12", 86, 12, (25.5, 12.7), (360, 32)),
    _cuda("RTX4070-12", 89, 12, (58.3, 29.1), (504, 32)),
    _cuda("RTX4060TI-16", 89, 16, (44.1, 22.1), (288, 16)),
    _cuda("RTX4080-16", 89, 16, (97.5, 48.7), (716.8, 32)),
    _cuda("RTX5080-16", 120, 15.9, (112.6, 56.3), (960, 64)),
    _cuda("RTX3090-24", 86, 24, (71, 35.6), (936, 32)),
    _cuda("RTX3090TI-24", 86, 24, (80, 40), (1008, 32)),
    _cuda("RTX4090D-24", 89, 24, (147, 73.5), (1008, 32)),
    _cuda("RTX4090-24", 89, 24, (165, 82.6), (1008, 32)),
    _cuda("A10-24", 86, 22.5, (125, 31.2), (600, 32)),
    _cuda("A5000-24", 86, 24, (111.1, 27.8), (768, 32)),
    _cuda("A30-24", 80, 24, (165, 10.3), (933, 100)),
    _cuda("L4-24", 89, 22.5, (121, 30.3), (300, 32)),
    _cuda("RTX5090-32", 120, 31.8, (209.5, 104.8), (1792, 64)),
    _cuda("A6000-48", 86, 48, (154.8, 38.7), (768, 32)),
    _cuda("A40-48", 86, 45, (149.7, 37.4), (696, 32)),
    _cuda("L20-48", 89, 45, (119.5, 59.8), (864, 32)),
    _cuda("L40-48", 89, 45, (181, 90.5), (864, 32)),
    _cuda("RTX6000ADA-48", 89, 48, (364, 91.1), (960, 32)),
    _cuda("L40S-48", 89, 45, (362, 91.6), (864, 32)),
    _cuda("A100-40", 80, 39.6, (312, 19.5), (1555, 300)),
    _cuda("A100-80", 80, 80, (312, 19.5), (2039, 300)),
    _cuda("A800-80", 80, 80, (312, 19.5), (2039, 200)),
    _cuda("H20-96", 90, 95.6, (148, 44), (4000, 450)),
    _cuda("H100-80", 90, 79.6, (989, 67), (3350, 450)),
    _cuda("H800-80", 90, 79.6, (989, 67), (3350, 200)),
    _cuda("H200-141", 90, 140.4, (989, 67), (4800, 450)),
    _cuda("B200-180", 100, 179, (2250, 75), (8000, 900)),
    _npu("910A-32", 1, 32, 256, (1200, 30)),
    _npu("910B-32", 2, 32, 280, (800, 196)),
    _npu("910B-64", 2, 64, 313, (1600, 196)),
    _npu("910C-64", 3, 64, 376, (1600, 196)),
)
DEVICES = {device.name: device for device in _TABLE}
_ALSO = {"A2": "910B", "A3": "910C-64", "910B3": "910B-64", "910B4": "910B-32", "910PROA": "910A-32"}
# The machine names its chips: torch_npu says of the dies of an A3 Ascend910_9391 and the like.
_ALSO |= {f"910{number}": "910C-64" for number in (9361, 9362, 9371, 9372, 9381, 9382, 9391, 9392)}
# More products per second than a 910B3, of the same memory: planned as that.
_ALSO |= {"910B1": "910B-64", "910B2": "910B-64", "910B2C": "910B-64"}
_IDLE_WORDS = re.compile(
    r"NVIDIA|HUAWEI|GEFORCE|TESLA|QUADRO|RTX|HGX|ASCEND|ATLAS|GENERATION|SXM\d*|PCIE|HBM\d*E?|GB(?![A-Z\d])"
    r"|(?:(?<=[ _-]\d\d)|(?<=[ _-]\d\d\d))GI?B?(?![A-Z\d])"
)
# Makers state fewer products per second of the forms for PCIe slots; 910B1 and 910B2 stand above for what has fewer.
_OTHER_PEAKS = re.compile(r"(V100|H100|H800).*PCIE|910B[12]C?$", re.IGNORECASE)


def devices_called(name: str) -> list[Device]:
    """Those of a name: ours, or the one that a driver tells (NVIDIA A100-SXM4-80GB). Several where it leaves the memory
    out.
    """
    wanted = _plain(name)
    wanted = _plain(_ALSO.get(wanted, wanted))
    if found := [device for device in _TABLE if wanted == _plain(device.name)]:
        return found
    return [device for device in _TABLE if wanted and wanted == _plain(device.name.rpartition("-")[0])]


def peak_flops(name: str, precision: Literal["fp32", "bf16", "fp16"]) -> float | None:
    """FLOP/s of products that the device of this name, as its driver tells it, has at most; None: not known."""
    if _OTHER_PEAKS.search(name):
        return None
    peaks = {device.peak(precision) for device in devices_called(name)}
    return peaks.pop() if len(peaks) == 1 else None


def _plain(name: str) -> str:
    return "".join(letter for letter in _IDLE_WORDS.sub("", name.upper()) if letter.isalnum())
