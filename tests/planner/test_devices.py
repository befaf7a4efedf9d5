from __future__ import annotations

import pytest

from hanlin.core.errors import ConfigError
from hanlin.planner.devices import DEVICES, find_device, precision_on

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
}


@pytest.mark.parametrize("name", [*DEVICES, *NAMES])
def test_devices_are_found_by_their_names(name: str) -> None:
    assert find_device(name).name == NAMES.get(name, name)


def test_a_name_of_several_devices_lists_them() -> None:
    with pytest.raises(ConfigError, match="'A100' is one of A100-40 and A100-80"):
        find_device("A100")


@pytest.mark.parametrize("name", ["A100-81", "", "GB", "RTX"])
def test_an_unknown_device_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no device .*known: .*V100-32"):
        find_device(name)


def test_cards_without_bf16_plan_fp16_and_refuse_bf16() -> None:
    without = {name for name, device in DEVICES.items() if not device.has_bf16}
    assert without == {"T4-16", "V100-16", "V100-32", "910A-32"}
    for device in DEVICES.values():
        assert precision_on(device, "auto") == ("fp16" if device.name in without else "bf16")
    with pytest.raises(ConfigError, match=r"train\.precision: V100-32 has no bf16; set it to auto, fp16 or fp32"):
        precision_on(DEVICES["V100-32"], "bf16")
    assert precision_on(None, "auto") == "fp32"  # the CPU
