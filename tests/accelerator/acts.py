"""What the stand-in counts for single acts, of which the budgets of the tests are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from stand_in import NAME, stand_in

DEVICE = torch.device(NAME, 0)

ACTS: dict[str, Callable[[torch.Tensor], object]] = {
    "tensor": lambda _: torch.tensor([1, 2], device=DEVICE),
    "tensor of a number": lambda _: torch.tensor(1.5, device=DEVICE),
    "new_tensor": lambda there: there.new_tensor([1.0, 2.0]),
    "as_tensor": lambda _: torch.as_tensor(np.arange(3), device=DEVICE),
    "to": lambda _: torch.arange(3).to(DEVICE),
    "list as index": lambda there: there[[0, 2]],
    "made there": lambda _: torch.zeros(3, device=DEVICE) + 2.0,
    "item": lambda there: there.sum().item(),
    "branch": lambda there: bool(there[0] > 0),
    "boolean index": lambda there: there[there > 0],
    "tolist": lambda there: there.tolist(),
    "cpu": lambda there: there.cpu(),
    "two products": lambda there: there @ there + there @ there,
}


def costs_of_acts() -> dict[str, list[int]]:
    """Of each act: copies to the device, waits for it, kernel launches."""
    told = {}
    with stand_in("cuda-sm90") as costs:
        there = torch.ones(4, device=DEVICE)
        for name, act in ACTS.items():
            costs.clear()
            act(there)
            told[name] = [costs.kinds["copy"], costs.kinds["wait"], costs.launches.total()]
    return told
