"""Commands as processes that may be killed: forked from this one, in which torch and hanlin are imported already.

A trial costs a tenth of a second or two, so that thousands of them fit into an hour on two cores.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import mmap
import os
import pkgutil
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

from hanlin.core.ranks import LISTENING, meeting_socket

TIMEOUT_SECONDS = 120.0
_LATER = (
    *("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"),
    *("matplotlib.pyplot", "plistlib"),
)
"""What commands import when they need it; a user who is not root may not be able to read it then."""
_OPTIONAL = {"hanlin.api.harness"}
"""What imports a package that is not installed with ours."""
CRASHED = 70
"""The code of a command that ended in a traceback."""


def warm() -> None:
    """Import whatever a command may need; whoever forks must not have threads."""
    import hanlin

    torch.set_num_threads(1)
    torch.zeros((), requires_grad=True).backward()
    for module in pkgutil.walk_packages(hanlin.__path__, "hanlin."):
        if not module.name.endswith("__main__") and module.name not in _OPTIONAL:
            importlib.import_module(module.name)
    for name in _LATER:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Kill:
    """When a command is killed, with all of its processes: after some seconds, or at a call that changes names or
    waits for the disk; number: of the call, from 1 on, of rank `rank`; after: once it has been done.
    """

    seconds: float | None = None
    number: int | None = None
    after: bool = False
    rank: int = 0


@dataclass(frozen=True)
class Trial:
    """How a command ended; code: negative for the signal that killed it; calls: those that a kill could have met."""

    code: int
    output: str
    seconds: float
    calls: int

    @property
    def is_crash(self) -> bool:
        """Whether it ended, or spoke, in a way that no user should see."""
        died = self.code < 0 and self.code != -signal.SIGKILL
        return died or self.code == CRASHED or "Traceback (most recent call last)" in self.output

    @property
    def is_late(self) -> bool:
        return "<too late>" in self.output


def run(
    argv: Sequence[str],
    folder: Path,
    *,
    ranks: int = 1,
    kill: Kill | None = None,
    prepare: Callable[[], None] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Trial:
    """Run a command in `folder`; prepare: is called in the new process first."""
    calls = mmap.mmap(-1, 8)
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_command(list(argv), folder, writing, ranks, _Calls(calls, kill), prepare)
    os.close(writing)
    os.set_blocking(reading, False)
    code, output = _wait(child, reading, start, kill, timeout)
    os.close(reading)
    seconds = time.monotonic() - start
    text = output.decode("utf-8", "replace") + ("<too late>" if seconds > timeout else "")
    return Trial(code, text, seconds, int.from_bytes(calls[:8], "little"))


def _wait(child: int, reading: int, start: float, kill: Kill | None, timeout: float) -> tuple[int, bytes]:
    """The code of a command and what it wrote."""
    limit = timeout if kill is None or kill.seconds is None else min(kill.seconds, timeout)
    pause, pieces = 0.001, []
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reading, 1 << 16):
                pieces.append(piece)
        if found:
            _kill_group(child)  # whoever is left of its ranks
            return os.waitstatus_to_exitcode(status), b"".join(pieces)
        if time.monotonic() - start > limit:
            _kill_group(child)
            limit = timeout
        time.sleep(pause)
        pause = min(pause * 1.2, 0.01)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGKILL)


def _environments(ranks: int) -> list[dict[str, str]]:
    """Of each rank, as our launcher gives them; nothing for one. The socket on which they meet stays open."""
    if ranks == 1:
        return [{}]
    listening = meeting_socket()
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listening.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    first, *others = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [{**first, LISTENING: str(listening.detach())}, *others]


def _be_command(
    argv: list[str],
    folder: Path,
    stream: int,
    ranks: int,
    calls: _Calls,
    prepare: Callable[[], None] | None,
) -> None:
    code = CRASHED
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, stream), (2, stream)):
            os.dup2(source, target)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        if prepare is not None:
            prepare()
        others, environments = [], _environments(ranks)
        for rank, environment in enumerate(environments[1:], start=1):
            if (child := os.fork()) == 0:
                os.close(int(environments[0][LISTENING]))
                code = _run_rank(argv, rank, environment, calls)
                os._exit(code)
            others.append(child)
        code = _run_rank(argv, 0, environments[0], calls)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in others]
        code = max([code, *codes], key=abs)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if code >= 0 else CRASHED)


def _run_rank(argv: list[str], rank: int, environment: dict[str, str], calls: _Calls) -> int:
    from hanlin.cli.main import main

    os.environ.update(environment)
    code = CRASHED
    calls.count(rank)
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


_COUNTED = ("rename", "replace", "fsync", "link", "unlink", "rmdir", "ftruncate")


@dataclass
class _Calls:
    """Counts the calls of one rank, in memory that the parent sees, and kills all of its group at one of them."""

    shared: mmap.mmap
    kill: Kill | None
    number: int = 0

    def count(self, rank: int) -> None:
        """From now on, in this process."""
        from hanlin.core import files

        if rank != (self.kill.rank if self.kill else 0):
            return
        for name in _COUNTED:
            setattr(os, name, self._counted(getattr(os, name)))
        files._rename = self._counted(files._rename)  # by ctypes, not by os

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            self.number += 1
            self.shared[:8] = self.number.to_bytes(8, "little")
            is_it = self.kill is not None and self.number == self.kill.number
            if is_it and self.kill is not None and not self.kill.after:
                os.killpg(0, signal.SIGKILL)
            try:
                return call(*args, **more)
            finally:
                if is_it:
                    os.killpg(0, signal.SIGKILL)

        return wrapped


# --- what trials are done with ---


@contextlib.contextmanager
def copy_of(template: Path, place: Path) -> Iterator[Path]:
    """A fresh copy of a folder at one place, so that the paths in its files stay right."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, symlinks=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def every_nth(share: float) -> int:
    """The step that leaves this share of a list."""
    return max(round(1 / share), 1)


def limit_memory(gigabytes: float) -> None:
    """Of the process that calls it."""
    size = int(gigabytes * (1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@dataclass(frozen=True)
class Tally:
    """What became of trials; unproven: those that would have shown nothing."""

    name: str
    tried: int = 0
    lost: int = 0
    differing: int = 0
    silent: int = 0
    traceback: int = 0
    unproven: int = 0
    seconds: float = 0.0

    def add(self, fault: str | None, example: str = "") -> Tally:
        """One more trial; fault: one of the columns, None: all was well; example: what was tried and shown."""
        if fault is None:
            return replace(self, tried=self.tried + 1)
        print(f"### {self.name}: {fault}: {example}\n", file=sys.stderr, flush=True)
        return replace(self, tried=self.tried + 1, **{fault: getattr(self, fault) + 1})

    @property
    def faults(self) -> int:
        return self.lost + self.differing + self.silent + self.traceback + self.unproven


def table(tallies: Sequence[Tally]) -> str:
    """As Markdown, with the sums at the end."""
    columns = ("tried", "lost", "differing", "silent", "traceback", "unproven")
    sums = Tally(
        "**all**",
        *(sum(getattr(one, name) for one in tallies) for name in columns),
        seconds=sum(one.seconds for one in tallies),
    )
    lines = [f"| trials | {' | '.join(columns)} | seconds |", f"|{'---|' * (len(columns) + 2)}"]
    for one in [*tallies, sums]:
        lines.append(
            f"| {one.name} | " + " | ".join(f"{getattr(one, name):,}" for name in columns) + f" | {one.seconds:,.0f} |"
        )
    return "\n".join(lines)
