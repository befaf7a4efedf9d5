"""Ranks: which of the processes of a run this is, and how they meet.

Besides `cli` the only place that reads environment variables. torch is imported only when a function needs it.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

MEETING_SECONDS = 300
"""So long ranks wait for each other at the start, if not their time-out is shorter."""

LISTENING = "HANLIN_LISTENING_SOCKET"
"""Environment variable of rank 0: the number of a socket that it was given, on which the others are waited for."""

_PORTS = range(20_000, 30_000)
"""For jobs of Slurm: below those that systems hand out by themselves, which may be taken before they are used."""


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


def is_started_by_srun() -> bool:
    """Whether srun started this process; it can show each process its own device only."""
    return _are_set(_SRUN)


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

    host = _name_meeting_place()
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(host)):
        # By itself gloo takes the address of this host's name, which may be 127.0.0.1 or that of another network.
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    limit = timedelta(seconds=timeout_seconds)
    meeting_limit = min(limit, timedelta(seconds=MEETING_SECONDS))
    store = _store(ranks, host, meeting_limit)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # torchrun keeps the store for its next attempt, which must not find this one's addresses there. Its agents on
        # several machines count attempts differently: see parallel/launch.py.
        store = PrefixStore(f"attempt{num_restarts()}", store)
    distributed.init_process_group(
        _backends(device),
        store=store,
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=limit,
    )
    return store


def _store(ranks: Ranks, host: str, limit: timedelta) -> Store:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    handle = os.environ.pop(LISTENING, None)
    if handle is None or not ranks.is_main:
        return next(iter(rendezvous("env://", ranks.rank, ranks.world, timeout=limit)))[0]
    port = int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, ranks.world, True, limit, master_listen_fd=int(handle))


def _backends(device: torch.device) -> str:
    """The device's own, and gloo for plain memory."""
    from hanlin.core.device import communication_backend

    backend = communication_backend(device)
    return backend if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend}"


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """Let a process that is alone be a group of its own, which sharding asks for; it ends at the end."""
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    distributed.init_process_group(
        _backends(device),
        store=distributed.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
        rank=0,
        world_size=1,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


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


def meeting_socket() -> socket.socket:
    """A socket on which ranks of this machine can meet. It listens already, so that nobody else gets its port before
    rank 0, to which it is to be handed over (`LISTENING`), has read torch.
    """
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(4096)
    return listening


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
