"""All that is asked of the devices, in a process of its own: a driver that hangs or dies takes nobody else with it.

python -m hanlin.diagnosis.probe    prints a JSON object per line: what begins, what was found, which devices there are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from hanlin.core.device import num_devices
from hanlin.diagnosis.devices import (
    copy_findings,
    device_findings,
    product_findings,
    torch_findings,
    version_findings,
)
from hanlin.diagnosis.finding import Finding, guarded
from hanlin.diagnosis.kernels import attention_findings
from hanlin.diagnosis.operations import operation_findings

__all__ = ["probes"]


def probes(devices: list[torch.device]) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """Everything in its order, by name; devices: the accelerators here."""
    cpu = torch.device("cpu")
    yield "torch", torch_findings
    yield "cpu product", partial(product_findings, cpu)
    yield "cpu attention", partial(attention_findings, cpu)
    if devices:
        yield "versions", partial(version_findings, devices[0].type)
    for device in devices:
        yield str(device), partial(device_findings, device)
        yield f"{device} product", partial(product_findings, device)
        yield f"{device} copies", partial(copy_findings, device)
        yield f"{device} attention", partial(attention_findings, device)
        yield f"{device} operations", partial(operation_findings, device)


def _look_for(devices: list[torch.device]) -> Iterator[Finding]:
    """Adds the accelerators here; a driver that cannot even say how many there are leaves the CPU to be asked."""
    count = num_devices("auto")  # makes a maker's device known to torch
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        devices += [torch.device(found.type, number) for number in range(count)]
    yield from ()


def main() -> None:
    def tell(value: object) -> None:
        print(json.dumps(value, ensure_ascii=False, default=str), flush=True)

    tell({"begins": "the accelerators"})
    devices: list[torch.device] = []
    for finding in guarded("the accelerators", lambda: _look_for(devices)):
        tell({"finding": finding.as_json()})
    tell({"devices": [str(device) for device in devices]})
    for name, probe in probes(devices):
        tell({"begins": name})
        for finding in guarded(name, probe):
            tell({"finding": finding.as_json()})
    sys.stdout.flush()


if __name__ == "__main__":
    main()
