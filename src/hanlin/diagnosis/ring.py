"""One sum over all devices of this machine, each with a process of its own, as training adds gradients.

python -m hanlin.diagnosis.ring RANK WORLD FILE DEVICE    FILE: in which the ranks meet; it is not there yet
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch
from torch import distributed

from hanlin.core.device import communication_backend, num_devices

_NUMBERS = 1 << 22
_ROUNDS = 4


def main(words: list[str]) -> None:
    """Prints what it was, as JSON, on rank 0."""
    rank, world, file, kind = int(words[0]), int(words[1]), words[2], words[3]
    num_devices("auto")  # makes a maker's device known to torch
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, rank)
    if kind != "cpu":
        torch.accelerator.set_device_index(rank)
    backend = communication_backend(device)
    distributed.init_process_group(
        backend, init_method=f"file://{file}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    numbers = torch.full((_NUMBERS,), float(rank + 1), device=device)
    distributed.all_reduce(numbers)
    is_right = bool((numbers == world * (world + 1) / 2).all())
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        distributed.all_reduce(numbers)
    total = float(numbers[0].item())  # waits
    seconds = (time.perf_counter() - started) / _ROUNDS
    if rank == 0:
        # What goes through each link, as NCCL's tests count it.
        rate = numbers.nbytes * 2 * (world - 1) / world / seconds / 1e9
        told = {"backend": backend, "world": world, "is_right": is_right, "gigabytes_per_second": rate, "total": total}
        print(json.dumps(told), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
