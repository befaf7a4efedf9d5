"""Register an accelerator called "npu" with two devices, as `torch_npu` does; print what our code makes of it.

For a process of its own: a registered accelerator cannot be taken back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace

from torch import distributed
from torch.utils import backend_registration

from hanlin.core.device import communication_backend, pick_device
from hanlin.core.errors import ConfigError


class Hook(backend_registration._DummyPrivateUse1Hook):
    def device_count(self) -> int:
        return 2


def register() -> None:
    module = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    backend_registration._setup_privateuseone_for_python_backend("npu", module, Hook())


def answer_of(function: Callable[..., object], *arguments: object) -> str:
    try:
        return str(function(*arguments))
    except ConfigError as error:
        return f"error: {error}"


def main() -> None:
    register()
    device = pick_device("auto", local_rank=1)
    settings = {setting: answer_of(pick_device, setting) for setting in ("npu", "npu:1", "npu:2", "cpu", "cuda")}
    before = answer_of(communication_backend, device)
    distributed.Backend.register_backend("hccl", lambda *_: None, devices=["npu"])
    answers = {"auto": str(device), **settings, "before": before, "after": answer_of(communication_backend, device)}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
