from __future__ import annotations

import pytest

from hanlin.core.cards import DEVICES, peak_flops
from hanlin.core.errors import ConfigError
from hanlin.planner.devices import find_device, precision_on

NAMES = {
    "a100 80GB": "A100-80",
    "NVIDIA A100-SXM4-80GB": "A100-80",
    "Tesla V100-SXM2-16GB": "V100-16",
    "NVIDIA GeForce RTX 3090": "RTX3090-24",
    "4090": "RTX4090-24",
    "l40s": "L40S-48",
    "NVIDIA RTX A6000": "A6000-48",
    "Tesla T4": "T4-16",
    "NVIDIA H100 80GB HBM3": "H100-80",
    "NVIDIA H200": "H200-141",
    "Ascend 910B3": "910B-64",
    "Ascend910C": "910C-64",
    "A100-40G": "A100-40",
    "A800 80G": "A800-80",
    "V100-32G": "V100-32",
    "NVIDIA GeForce RTX 4090 D": "RTX4090D-24",
    "4060 Ti": "RTX4060TI-16",
    "NVIDIA RTX 6000 Ada Generation": "RTX6000ADA-48",
    "910B2": "910B-64",
    "Ascend910_9391": "910C-64",
}


@pytest.mark.parametrize("name", [*DEVICES, *NAMES])
def test_devices_are_found_by_their_names(name: str) -> None:
    assert find_device(name).name == NAMES.get(name, name)


def test_a_name_of_several_devices_lists_them() -> None:
    with pytest.raises(ConfigError, match="'A100' is one of A100-40, A100-80"):
        find_device("A100")


def test_names_of_ours_are_unlike_and_what_makers_state_adds_up() -> None:
    assert {find_device(name).name for name in DEVICES} == set(DEVICES)
    for device in DEVICES.values():
        assert device.memory_bytes <= float(device.name.rpartition("-")[2]) * 2**30
        assert 0 < device.fp32_flops <= device.flops
        assert 1e9 < device.link_bytes < device.bandwidth


def test_a_series_of_machines_is_several_devices() -> None:
    with pytest.raises(ConfigError, match="'A2' is one of 910B-32, 910B-64"):
        find_device("A2")


@pytest.mark.parametrize(
    ("name", "half", "full"),
    [
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("Tesla V100-SXM2-32GB", 125e12, 15.7e12),
        ("Ascend910_9391", 376e12, 94e12),
        # Of these the table has other forms, or chips with fewer products.
        ("NVIDIA H100 PCIe", None, None),
        ("Tesla V100-PCIE-16GB", None, None),
        ("Ascend910B1", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("stand-in", None, None),
    ],
)
def test_the_peak_of_a_card_is_told_where_it_is_known(name: str, half: float | None, full: float | None) -> None:
    assert [peak_flops(name, precision) for precision in ("bf16", "fp16", "fp32")] == [half, half, full]


@pytest.mark.parametrize("name", ["A100-81", "", "GB", "RTX", "A10G", "24G", "mps"])
def test_an_unknown_device_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no device .*known: .*V100-32"):
        find_device(name)


def test_cards_without_bf16_plan_fp16_and_refuse_bf16() -> None:
    without = {name for name, device in DEVICES.items() if not device.has_bf16}
    assert without == {"RTX2080TI-11", "T4-16", "V100-16", "V100-32", "910A-32"}
    for device in DEVICES.values():
        assert precision_on(device, "auto") == ("fp16" if device.name in without else "bf16")
    with pytest.raises(ConfigError, match=r"train\.precision: V100-32 has no bf16; set it to auto, fp16 or fp32"):
        precision_on(DEVICES["V100-32"], "bf16")
    assert precision_on(None, "auto") == "fp32"  # the CPU
