"""Facts of this process: its rank, its device, its random numbers, its log, its threads.

Besides `cli` the only place that reads environment variables. torch is imported only when a function needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

log = logging.getLogger(__name__)

LINE = "%(asctime)s %(levelname)s %(message)s"


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes this is, and which of those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, Kubernetes' training operator
    # srun. SLURM_NTASKS would not do: a batch script that calls us without srun has it too.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def read_ranks() -> Ranks:
    """What the launcher (torchrun or srun) says about this process; without one it is alone."""
    for names in _LAUNCHERS:
        if all(name in os.environ for name in names):
            return Ranks(*(int(os.environ[name]) for name in names))
    return Ranks()


# --- device ---


def pick_device(setting: str, local_rank: int = 0) -> torch.device:
    """The device of `run.device`: auto, cpu, or an accelerator by torch's name, with or without a number.

    Raises: ConfigError when it is not there.
    """
    import torch

    if importlib.util.find_spec("torch_npu"):
        importlib.import_module("torch_npu")  # it makes "npu" known to torch
    found = torch.accelerator.current_accelerator(check_available=True)
    if setting == "cpu" or (setting == "auto" and found is None):
        return torch.device("cpu")
    kind, _, number = setting.partition(":")
    if found is None or kind not in ("auto", found.type):
        there = "cpu" if found is None else f"cpu, {found.type}"
        raise ConfigError(f"run.device: {setting!r} is not available here; available: {there}; or use auto")
    count = torch.accelerator.device_count()
    index = int(number) if number.isdecimal() else local_rank
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


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the accelerator, else of this process."""
    import torch

    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # only macOS counts bytes


def set_threads(threads: int | None) -> int:
    """Let torch use this many CPU threads (None: its own choice); return how many it uses."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def keep_blas_quiet() -> None:
    """Limit numpy's own thread pool to one thread; only works before numpy is imported.

    Two pools that wait for work by spinning take the cores from each other (torch at 60 % of its speed).
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# --- random numbers ---


def seed_everything(seed: int) -> None:
    """Start the global random numbers of Python, numpy and torch (all devices) from `seed`."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all global random numbers, as plain values."""
    import numpy as np
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
    import numpy as np
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


# --- log ---


def start_log(folder: Path | None = None, ranks: Ranks | None = None, *, level: int = logging.INFO) -> Console:
    """Send our log lines to the terminal and to `folder`/log.txt, on the main rank only; return the terminal.

    A live display must use the returned console, so that log lines appear above it. Calling it again replaces the
    former targets.
    """
    from rich.console import Console

    ours = logging.getLogger("hanlin")
    for handler in list(ours.handlers):
        ours.removeHandler(handler)
        handler.close()
    ours.setLevel(level)
    ours.propagate = False
    console = Console(stderr=True)
    if not (ranks or read_ranks()).is_main:
        ours.addHandler(logging.NullHandler())
        return console
    ours.addHandler(_terminal_handler(console))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter(LINE))
        ours.addHandler(handler)
    return console


def _terminal_handler(console: Console) -> logging.Handler:
    if not console.is_terminal:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(LINE))
        return handler
    from rich.logging import RichHandler

    return RichHandler(console=console, show_path=False, markup=False, highlighter=None, log_time_format="[%X]")
