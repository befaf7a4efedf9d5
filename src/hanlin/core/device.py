"""The device of this process, its memory and its CPU threads. torch is imported only when a function needs it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.core.errors import ConfigError
from hanlin.core.machine import free_ram_bytes
from hanlin.core.ranks import is_started_by_srun, read_ranks

if TYPE_CHECKING:
    import torch


def num_devices(setting: str) -> int:
    """How many devices of this machine `run.device` leaves to choose from; 1 for the CPU."""
    import torch

    _load_foreign_accelerators()
    found = torch.accelerator.current_accelerator(check_available=True)
    is_any = found is not None and setting in ("auto", found.type)
    return torch.accelerator.device_count() if is_any else 1


def _load_foreign_accelerators() -> None:
    if importlib.util.find_spec("torch_npu"):
        importlib.import_module("torch_npu")  # it makes "npu" known to torch


def pick_device(setting: str, local_rank: int | None = None) -> torch.device:
    """The device of `run.device`: auto, cpu, or an accelerator by torch's name, with or without a number.

    local_rank: which of this machine's accelerators without a number; None: as the launcher says.
    Raises: ConfigError when it is not there.
    """
    import torch

    _load_foreign_accelerators()
    found = torch.accelerator.current_accelerator(check_available=True)
    if setting == "cpu" or (setting == "auto" and found is None):
        return torch.device("cpu")
    kind, _, number = setting.partition(":")
    if found is None or kind not in ("auto", found.type):
        there = "cpu" if found is None else f"cpu, {found.type}"
        raise ConfigError(f"run.device: {setting!r} is not available here; available: {there}; or use auto")
    count = torch.accelerator.device_count()
    ranks = read_ranks()
    if number and ranks.world > 1:
        raise ConfigError(f"run.device: {setting!r} is one device for {ranks.world} processes; write {kind!r}")
    local_rank = ranks.local_rank if local_rank is None else local_rank
    if count == 1 and is_started_by_srun():
        local_rank = 0  # srun can show each process its own device only
    index = int(number) if number.isdecimal() else local_rank
    if not number and index >= count:
        raise ConfigError(
            f"run.device: process {index} of this machine finds no {found.type} device of its own; "
            f"there are {count}, so start at most {count} processes here, or use cpu"
        )
    if (number and not number.isdecimal()) or index >= count:
        raise ConfigError(f"run.device: there is no {setting!r}; {found.type} devices here: 0 to {count - 1}")
    device = torch.device(found.type, index)
    torch.accelerator.set_device_index(index)
    return device


def communication_backend(device: torch.device) -> str:
    """What processes with such a device talk through, as torch has registered it: nccl, hccl, gloo, ...

    Raises: ConfigError when torch knows none.
    """
    from torch import distributed

    try:
        return distributed.get_default_backend_for_device(device)
    except ValueError:
        raise ConfigError(
            f"run.device: torch knows nothing through which several {device.type} devices could talk; use one process"
        ) from None


AMPERE = 80
"""The compute capability of the first CUDA devices with bf16 and flash attention."""


def cuda_capability(device: torch.device) -> int:
    """80 for a compute capability of 8.0; 0 where it is no CUDA device."""
    import torch

    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def has_bf16(device: torch.device) -> bool:
    """Whether its arithmetic knows bf16; a CPU's does, if slowly."""
    import torch

    if device.type == "cuda":
        return cuda_capability(device) >= AMPERE
    known = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    return known is None or bool(known())


def has_foreach(device: torch.device) -> bool:
    """Whether a kernel takes many tensors at once; a CPU goes from one to the next, and NPUs have few such kernels."""
    return device.type == "cuda"


def has_fp64(device: torch.device) -> bool:
    """Whether it holds fp64; Apple's GPUs and Ascend's NPUs do not."""
    return device.type not in ("mps", "npu")


def can_pin_in_place(device: torch.device) -> bool:
    """Whether torch can pin memory that is there already, for copies from the device: it asks CUDA's runtime."""
    return device.type == "cuda"


def best_precision(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What `train.precision: auto` is there."""
    if device.type in ("cpu", "mps"):
        return "fp32"
    return "bf16" if has_bf16(device) else "fp16"


def precision_problem(precision: str, device: torch.device) -> str | None:
    """Why a device cannot compute in it; None: it can."""
    if precision != "bf16" or has_bf16(device):
        return None
    return (
        f"this {device.type} device has no bf16; set it to fp16 or fp32; a run that began in bf16 goes on where there "
        "is bf16"
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the accelerator, where it counts that, else of this process."""
    import torch

    # Asked of the device's own module: torch.accelerator's raises for one whose allocator it does not know.
    counted = getattr(getattr(torch, device.type, None), "max_memory_allocated", None)
    if counted is not None and device.type != "cpu":
        return counted(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # only macOS counts bytes


def memory_bytes(device: torch.device) -> int:
    """The memory held now: of the accelerator, where it counts that, else of this process (0: nobody tells)."""
    import torch

    counted = getattr(getattr(torch, device.type, None), "memory_allocated", None)
    if counted is not None and device.type != "cpu":
        return counted(device)
    with suppress(OSError):  # Linux tells
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_memory_bytes(device: torch.device) -> int | None:
    """What new tensors can take: of the accelerator, where it tells, else of the machine; None: nobody tells."""
    import torch

    if device.type == "cpu":
        return free_ram_bytes()
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    # What the allocator keeps of tensors that are gone is free for others.
    return free + module.memory_reserved(device) - module.memory_allocated(device)


def set_threads(threads: int | None) -> int:
    """Let torch use this many CPU threads (None: its own choice); return how many it uses."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def device_memory(device: torch.device) -> tuple[str, int] | None:
    """The name of a card and the bytes of its memory; None of what has no memory of its own."""
    if device.type not in ("cuda", "npu"):
        return None
    import torch

    about = torch.get_device_module(device).get_device_properties(device)
    return about.name, about.total_memory


def keep_blas_quiet() -> None:
    """Limit numpy's own thread pool to one thread; only works before numpy is imported.

    Two pools that wait for work by spinning take the cores from each other (torch at 60 % of its speed).
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_MALLOC = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
"""The parameters of glibc's mallopt, by the variables that say the same."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for what it asks for next (glibc; elsewhere, or where the environment says
    how malloc is to be, nothing happens).

    By itself glibc gives back what is 32 MB or larger, such as the gradient of an embedding, and each step of training
    takes it anew, page by page: 3 to 8 % of its CPU time.
    """
    malloc_option("MALLOC_MMAP_THRESHOLD_", 2**31 - 1)
    malloc_option("MALLOC_TRIM_THRESHOLD_", -1)  # none


def malloc_option(name: str, value: int) -> None:
    """Set what the variable of this name says, if that is not set."""
    import ctypes

    if name not in os.environ:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(_MALLOC[name], value)


def use_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MB for what is that large; only works before torch takes memory.

    A CPU that answers reads all weights for each token: with pages of 4 KB it also waits for their addresses.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
