"""The global random numbers of this process: seeded, saved and restored."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_everything(seed: int) -> None:
    """Start the global random numbers of Python, numpy and torch (all devices) from `seed`."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all global random numbers, as plain values."""
    import torch

    numpy_state: Any = np.random.get_state(legacy=True)
    states = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "torch": _as_hex(torch.get_rng_state()),
    }
    if device.type != "cpu":
        states[device.type] = _as_hex(torch.get_device_module(device).get_rng_state(device))
    return states


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Go on as when `random_states` was called; an accelerator of another kind starts anew."""
    import torch

    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    algorithm, keys, *rest = states["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_hex(states["torch"]))
    if device.type in states:
        torch.get_device_module(device).set_rng_state(_from_hex(states[device.type]), device)


def _as_hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
