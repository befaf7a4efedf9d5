"""A lack of memory, or a failed device, in one sentence: in which step, and what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hanlin.core.device import peak_memory_bytes, pick_device
from hanlin.core.errors import ConfigError, HanlinError

__all__ = ["DeviceError", "OutOfMemoryError", "is_device_failure", "telling_memory"]

# What torch calls it on the CPU, where it has no class of its own, and what CUDA's libraries call it.
_WORDS = ("defaultcpuallocator", "can't allocate memory", "out of memory", "status_alloc_failed")
_IN_PIECES = re.compile(r"([\d.]+) GiB is reserved by PyTorch but unallocated")
_MUCH_IN_PIECES = 1.0  # GiB
_NO_CODE = "no kernel image is available"


class OutOfMemoryError(HanlinError):
    """A model, a batch or an answer that needs more memory than there is."""


class DeviceError(HanlinError):
    """An accelerator that computes nothing more in this process, be it by a defect of its own or of a program. The same
    command may succeed when it is called again.
    """

    exit_code = 1


@contextmanager
def telling_memory(device: str, advice: str) -> Iterator[None]:
    """Tell a lack of memory inside, and a failed device; device: `run.device`; advice: the settings that need less.

    Raises: OutOfMemoryError, DeviceError, ConfigError (a card that torch was built without).
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        step = " ".join(getattr(error, "__notes__", ()))
        if is_device_failure(error):
            _refuse_other_build(error)
            raise DeviceError(
                f"{f'{step}: ' if step else ''}the device failed: {_first_line(error)}. What was computed last is to "
                "blame, not always what the log shows: with CUDA_LAUNCH_BLOCKING=1 in the environment the place is "
                "right; if it is another one each time, look at the device (nvidia-smi -q, Xid in dmesg)"
            ) from error
        if not _is_out_of_memory(error):
            raise
        where = pick_device(device)
        peak = f"{peak_memory_bytes(where) / 2**30:,.2f} GiB at most were in use on {where}"
        advice = "; ".join([*_on_pieces(error), advice])
        raise OutOfMemoryError(
            f"{f'{step}: ' if step else ''}out of memory: {_first_line(error)}; {peak}. To need less: {advice}"
        ) from error


def is_device_failure(error: BaseException) -> bool:
    """Whether the device computes nothing more in this process: what its runtime says of a kernel that failed (a wrong
    index, a defect) it says of every call from then on.
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError) and not _is_out_of_memory(error)


def _refuse_other_build(error: BaseException) -> None:
    """torch's builds leave out old cards: those for CUDA 12.8 and later the V100.

    Raises: ConfigError.
    """
    if _NO_CODE in str(error):
        import torch

        raise ConfigError(
            f"run.device: torch {torch.__version__} was built without code for this card; install a build that has it "
            "(for a V100 the one for CUDA 12.6: pip install torch --index-url https://download.pytorch.org/whl/cu126), "
            "or set it to cpu"
        ) from error


def _on_pieces(error: BaseException) -> Iterator[str]:
    """What to do where much memory is free, but in pieces that are too small, as rows of all lengths leave them."""
    found = _IN_PIECES.search(str(error))
    if found is not None and float(found[1]) >= _MUCH_IN_PIECES:
        yield (
            f"set PYTORCH_ALLOC_CONF=expandable_segments:True in the environment, as {found[1]} GiB are free in pieces "
            "that are too small"
        )


def _is_out_of_memory(error: BaseException) -> bool:
    """torch.OutOfMemoryError is a RuntimeError that says so."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].split(". GPU")[0].rstrip(".")
    return text[:300] or "the system gave no more"
