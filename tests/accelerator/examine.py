"""What `hanlin doctor` asks of a device, asked of the stand-in; JSON on standard output.

In a process of its own, since the stand-in changes torch.
"""

from __future__ import annotations

import json

import torch
from stand_in import NAME, Costs, stand_in

from hanlin.diagnosis import devices
from hanlin.diagnosis.npu_operations import known_operations
from hanlin.diagnosis.operations import EXAMPLES, SmallTensors
from hanlin.diagnosis.probe import probes

NOT_ASKED = {"native_dropout_backward", "silu_backward"}
"""Parts of gradients that the stand-in gets in other words, or without numbers to compare."""


def main() -> None:
    devices._SIZE, devices._ENOUGH_SECONDS, devices._COPIED_BYTES = 64, 0.0, 1 << 16
    device = torch.device(NAME, 0)
    with stand_in("npu") as costs:
        found = [finding for name, probe in probes([device]) if NAME in name for finding in probe()]
        unlisted = dict(costs.unlisted)
        launched = {*costs.launches, *_in_inference_mode(device, costs)}
    told = {
        "findings": [finding.as_json() for finding in found],
        "not_asked": sorted(known_operations() - launched - NOT_ASKED),
        "unlisted": unlisted,
        "attention": dict(costs.attention),
    }
    print(json.dumps(told))


def _in_inference_mode(device: torch.device, costs: Costs) -> set[str]:
    """Some operations are taken apart elsewhere."""
    inputs = SmallTensors(device, torch.float32)
    for example in EXAMPLES.values():
        example(inputs)
    with torch.inference_mode():
        for name, example in EXAMPLES.items():
            if name != "_fused_adamw_":
                example(inputs)
    return set(costs.launches)


if __name__ == "__main__":
    main()
