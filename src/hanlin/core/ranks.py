"""Facts of this process: its rank and how the ranks meet, its device, its random numbers, its log, its threads.

Besides `cli` the only place that reads environment variables. torch is imported only when a function needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import re
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch.distributed.distributed_c10d import Store

log = logging.getLogger(__name__)

MEETING_SECONDS = 300
"""So long ranks wait for each other at the start, if not their time-out is shorter."""

_PORTS = range(20_000, 30_000)
"""For meeting places: below those that systems hand out by themselves, which may be taken before they are used."""

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


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# srun. SLURM_NTASKS would not do: a batch script that calls us without srun has it too.
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
# Kubernetes' PyTorchJob without torchrun: one process per pod.
_PODS = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def read_ranks() -> Ranks:
    """What the launcher (torchrun, srun, Kubernetes) says about this process; without one it is alone."""
    for names in (_TORCHRUN, _SRUN):
        if _are_set(names):
            return Ranks(*(int(os.environ[name]) for name in names))
    if _are_set(_PODS):
        return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return Ranks()


def is_launched() -> bool:
    """Whether a launcher started this process, be it as the only one."""
    return any(map(_are_set, (_TORCHRUN, _SRUN, _PODS)))


def num_restarts() -> int:
    """How often the launcher (torchrun or ours) has started these processes anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _are_set(names: tuple[str, ...]) -> bool:
    return all(name in os.environ for name in names)


# --- meeting the other ranks ---


def join(device: torch.device, *, timeout_seconds: float = 1800) -> Store | None:
    """Meet the other ranks, and let them talk through the device's backend and, for plain memory, through gloo.

    timeout_seconds: a rank that keeps the others waiting for longer is taken for lost; it must cover the longest work
    that one rank does alone (writing a checkpoint, preparing data).
    Returns the store that all ranks share; None when this process is alone (then nothing was started).
    Raises: ConfigError when the launcher does not say where to meet; torch's errors when somebody does not come.
    """
    ranks = read_ranks()
    if ranks.world == 1:
        return None
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    host = _name_meeting_place()
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(host)):
        # By itself gloo takes the address of this host's name, which may be 127.0.0.1 or that of another network.
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    backend = communication_backend(device)
    limit = timedelta(seconds=timeout_seconds)
    meeting_limit = min(limit, timedelta(seconds=MEETING_SECONDS))
    store = next(iter(rendezvous("env://", ranks.rank, ranks.world, timeout=meeting_limit)))[0]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # torchrun keeps the store for its next attempt, which must not find this one's addresses there. Its agents on
        # several machines count attempts differently: see parallel/launch.py.
        store = PrefixStore(f"attempt{num_restarts()}", store)
    distributed.init_process_group(
        backend if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend}",
        store=store,
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=limit,
    )
    return store


def leave() -> None:
    """End talking to the other ranks; every rank must call it."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()  # rank 0 keeps the store: it must not go before the others are done with it
        distributed.destroy_process_group()


def interfaces() -> list[str]:
    """The names of this machine's network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def interface_towards(host: str) -> str | None:
    """The network interface through which this machine reaches `host`; None: not known."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            ours = probe.getsockname()[0]
            for name in interfaces():
                try:
                    # SIOCGIFADDR: the IPv4 address stands in bytes 20 to 24 of the answer.
                    answer = fcntl.ioctl(probe, 0x8915, name.encode().ljust(40, b"\0"))
                except OSError:  # this interface has no address
                    continue
                if socket.inet_ntoa(answer[20:24]) == ours:
                    return name
    except OSError:  # no such host, or it has no IPv4 address: joining will say so
        return None
    return None


def free_port() -> int:
    """A port of this machine on which ranks can meet: nobody has it, nor will get it unasked."""
    ports = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return next((port for port in ports if _is_free(port)), ports[0])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _name_meeting_place() -> str:
    """Make MASTER_ADDR and MASTER_PORT known where Slurm only implies them; return the address."""
    if "MASTER_ADDR" not in os.environ and (nodes := os.environ.get("SLURM_STEP_NODELIST")):
        os.environ["MASTER_ADDR"] = first_host(nodes)
    if "MASTER_PORT" not in os.environ and (job := os.environ.get("SLURM_JOB_ID")):
        number = int(job) * 7 + int(os.environ.get("SLURM_STEP_ID", "0"))  # another one for each step of a job
        os.environ["MASTER_PORT"] = str(_PORTS[number % len(_PORTS)])
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{read_ranks().world} processes were started, but {' and '.join(missing)} do not say where they meet; "
            "set them to the address of rank 0's machine and a free port there"
        )
    return os.environ["MASTER_ADDR"]


def first_host(nodes: str) -> str:
    """The first host of Slurm's short form: node[07-09,12],login1 -> node07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


# --- device ---


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
    if count == 1 and _are_set(_SRUN):
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
    is_main = (ranks or read_ranks()).is_main
    console = Console(stderr=True, quiet=not is_main)
    if not is_main:
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
