"""The device that a plan is for, by the name that a user gives it (the table: core/cards.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hanlin.core.cards import DEVICES, Device, devices_called
from hanlin.core.errors import ConfigError
from hanlin.layers.precision import Precision
from hanlin.recipe.reading import nearest


def find_device(name: str) -> Device:
    """The device of this name: ours, or the one that its driver tells (NVIDIA A100-SXM4-80GB). Its memory may be left
    out where there is one such device.

    Raises: ConfigError that lists all.
    """
    found = devices_called(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--device: {name!r} is one of {names_of(found)}; name one")
    hint = nearest(name, DEVICES)
    known = "" if hint.startswith("; known") else f" (known: {names_of(list(DEVICES.values()))})"
    raise ConfigError(
        f"--device: no device {name!r}{hint}{known}; of another one name a device of its kind, and --memory GIB"
    )


def precision_on(device: Device | None, asked: Literal["auto", "fp32", "bf16", "fp16"]) -> Precision:
    """What `train.precision` is there, `auto` as in a run (core/device.py); None: on the CPU.

    Raises: ConfigError for bf16 where there is none.
    """
    if device is not None and asked == "bf16" and not device.has_bf16:
        raise ConfigError(f"train.precision: {device.name} has no bf16; set it to auto, fp16 or fp32")
    if asked != "auto":
        return asked
    if device is None:
        return "fp32"
    return "bf16" if device.has_bf16 else "fp16"


def names_of(devices: Sequence[Device]) -> str:
    return ", ".join(device.name for device in devices)
