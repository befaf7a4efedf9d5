"""Starts the processes of a run and sees that they end together: on this machine, or one command per machine by ssh.

Every process is a session of its own: a Ctrl-C in the terminal reaches only us, and we pass it on once. Without torch.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from hanlin.core.errors import ConfigError, HanlinError, RankError
from hanlin.core.files import check_regular
from hanlin.core.os_errors import explain
from hanlin.core.ranks import LISTENING, interface_towards, meeting_socket

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""So long after the first failure the others may say what they know of it; then they are killed."""

AFTER_ROLL_CALL_SECONDS = 1.0
"""The same once a rank has found out that another one does not answer (parallel/failure_report.py)."""

SAVING_SECONDS = 120
"""So long after a signal torchrun lets its ranks finish their step and save."""

EXIT_SAVED = 75
"""Exit code of a rank that a signal ended after it had saved (training/loop.py)."""


@dataclass(frozen=True)
class RankProcess:
    """One process of a run. output: where its words go, from the byte `begin` on; None: to our terminal."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path | None = None
    begin: int = 0


@dataclass(frozen=True)
class LaunchResult:
    """How the processes ended. text: what the terminal does not show yet; may_restart: a new attempt makes sense."""

    code: int
    text: str = ""
    may_restart: bool = False


def run_ranks_here(command: Sequence[str], world: int, *, max_restarts: int = 0, logs: Path | None = None) -> int:
    """Run a command as ranks 0 to world - 1 of this machine; return the exit code of the first that failed, 75, or 0.

    Rank 0 writes to our terminal, the others to `rank_N.log` in the folder `logs`, behind what is there (None: to files
    that are gone at the end); the last words of a failed one are shown. SIGTERM, SIGINT and SIGHUP are passed on as
    SIGTERM. Dies this process, so do they.
    max_restarts: how often all are started anew after a failure that is not the user's mistake.
    Raises: ConfigError when nothing can be written to `logs`.
    """
    for attempt in range(max_restarts + 1):
        with tempfile.TemporaryDirectory(prefix="hanlin-") as folder:
            end = run_together(_start_ranks(command, world, attempt, logs or Path(folder)))
        if not end.may_restart or attempt == max_restarts:
            break
        log.warning("%s; starting all %d ranks anew (%d of %d)", end.text, world, attempt + 1, max_restarts)
    if end.text:
        log.error("%s", end.text)
    return end.code


@dataclass(frozen=True)
class Rendezvous:
    """Where torchrun's agents meet, on the first machine, and how often the run is started anew after a failure."""

    address: str
    port: int = 29500
    max_restarts: int = 0


def node_commands(hosts: Mapping[str, int], words: Sequence[str], meeting: Rendezvous) -> dict[str, str]:
    """For each host the shell command that starts its processes of `hanlin WORDS`.

    Python and the current folder must be at the same place on all machines; what the environment says to Python and to
    the communication goes with the command.
    """
    said = [f"{name}={value}" for name, value in sorted(os.environ.items()) if _travels(name)]
    # torchrun's agents else keep one store for all attempts, where a new rank finds the address of a dead one.
    said.append("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    said.append(f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING_SECONDS}")
    agents = [sys.executable, "-m", "torch.distributed.run", "--nnodes", len(hosts)]
    agents += ["--rdzv-backend", "c10d", "--rdzv-id", "hanlin", "--rdzv-endpoint", f"{meeting.address}:{meeting.port}"]
    commands = {}
    for number, (host, slots) in enumerate(hosts.items()):
        # Both by hand: torchrun tells them from the host's name, which may lead to 127.0.0.1.
        here = ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", host.rpartition("@")[2]]
        here += ["--nproc-per-node", slots, "--max-restarts", meeting.max_restarts, "-m", "hanlin", *words]
        commands[host] = f"cd {shlex.quote(os.getcwd())} && {shlex.join(['env', *said, *map(str, agents + here)])}"
    return commands


_TRAVELLING = (
    *("PYTHON", "OMP_", "MKL_", "TORCH", "PYTORCH_", "HF_", "HANLIN_"),
    *("CUDA_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "UCX_", "ASCEND_", "HCCL_"),
)
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
# The command line of a process can be read by everyone on its machine, and ours is printed.


def _travels(name: str) -> bool:
    """Whether a variable of our environment is told to the other machines."""
    is_secret = not set(_SECRETS).isdisjoint(name.split("_"))
    return name.startswith(_TRAVELLING) and not is_secret


def run_nodes(commands: Mapping[str, str]) -> int:
    """Run each host's command by ssh (our own host's here) until all have ended; return the first failed one's code."""
    ours = {"localhost", "127.0.0.1", socket.gethostname()}
    # -tt: with a terminal of its own the remote side ends when the connection does.
    lines = {
        host: ["sh", "-c", line] if host in ours else ["ssh", "-tt", "-o", "BatchMode=yes", host, line]
        for host, line in commands.items()
    }
    end = run_together(RankProcess(host, start_process(line)) for host, line in lines.items())
    if end.text:
        log.error("%s", end.text)
    return end.code


def run_together(starting: Iterable[RankProcess]) -> LaunchResult:
    """Wait for processes, each of which is started by its turn; when one fails, the others have `GRACE_SECONDS` before
    they are killed.
    """
    members: list[RankProcess] = []
    with _passing_signals(members) as passed:
        try:
            for member in starting:
                members.append(member)
                if passed:
                    break
            failed = _wait(members)
        finally:
            hung = [member for member in members if member.process.poll() is None]
            for member in members:
                _kill(member.process)
    return _judge(members, failed, hung, was_asked=bool(passed))


def rank_environment(rank: int, world: int, port: int, attempt: int) -> dict[str, str]:
    """What torchrun would tell a process of a run on one machine."""
    given = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": attempt,
    }
    # Each process would take all cores otherwise, and together they would wait for each other.
    shared: Mapping[str, object] = {"OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // world)}
    if interface := interface_towards("127.0.0.1"):
        shared = {**shared, "GLOO_SOCKET_IFNAME": interface}
    return {name: str(value) for name, value in {**shared, **os.environ, **given}.items()}


def _start_ranks(command: Sequence[str], world: int, attempt: int, folder: Path) -> Iterator[RankProcess]:
    outputs = [folder / f"rank_{rank}.log" for rank in range(1, world)]
    begins = [_begin_log(output, command, attempt) for output in outputs]
    with meeting_socket() as listening:
        port, handle = listening.getsockname()[1], listening.fileno()
        first = rank_environment(0, world, port, attempt) | {LISTENING: str(handle)}
        yield RankProcess("rank 0", start_process(command, first, handles=[handle]))
        for rank, (output, begin) in enumerate(zip(outputs, begins, strict=True), start=1):
            process = start_process(command, rank_environment(rank, world, port, attempt), output)
            yield RankProcess(f"rank {rank}", process, output, begin)


def _begin_log(path: Path, command: Sequence[str], attempt: int) -> int:
    """Write down in a rank's log what begins; returns where the words of this attempt will stand."""
    check_regular(path, ConfigError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            when, line = time.strftime("%Y-%m-%d %H:%M:%S"), shlex.join(command).replace("\n", " ")
            stream.write(f"--- {when} attempt {attempt}: {line}\n".encode())
            return stream.tell()
    except OSError as error:
        raise ConfigError(f"{explain(error, path, 'write')}; the words of ranks go there") from None


def start_process(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
    handles: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A process in a session of its own that dies with us.

    output: file behind which its words go; None: our terminal. handles: open files of ours that it gets too.
    """
    stream = output.open("ab") if output else None
    follows = partial(_die_with, os.getpid()) if sys.platform == "linux" else None
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT if stream else None,
            start_new_session=True,
            pass_fds=handles,
            preexec_fn=follows,  # noqa: PLW1509  # no threads here
        )
    finally:
        if stream:
            stream.close()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with(parent: int) -> None:
    assert _LIBC is not None
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _passing_signals(members: Sequence[RankProcess]) -> Iterator[list[int]]:
    """Pass each signal on to the members; yields the list of those passed on."""
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        passed.append(number)
        for member in members:
            if member.process.poll() is None:
                member.process.send_signal(signal.SIGTERM)

    former = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            former[number] = signal.signal(number, pass_on)
    try:
        yield passed
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _wait(members: Sequence[RankProcess]) -> list[RankProcess]:
    """Until all have ended or the grace after the first failure is over; returns the failed ones, the first first."""
    failed: list[RankProcess] = []
    limit = float("inf")
    while any(member.process.poll() is None for member in members) and time.monotonic() < limit:
        _note_failures(members, failed)
        if failed:
            is_known = any(_is_lost(member) for member in failed)
            limit = min(limit, time.monotonic() + (AFTER_ROLL_CALL_SECONDS if is_known else GRACE_SECONDS))
        time.sleep(0.05)
    _note_failures(members, failed)
    return failed


def _note_failures(members: Sequence[RankProcess], failed: list[RankProcess]) -> None:
    failed += [
        member for member in members if member.process.poll() not in (None, 0, EXIT_SAVED) and member not in failed
    ]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started in its session."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- what is said at the end ---


def _judge(
    members: Sequence[RankProcess], failed: Sequence[RankProcess], hung: Sequence[RankProcess], *, was_asked: bool
) -> LaunchResult:
    if not failed:
        return LaunchResult(max(member.process.returncode for member in members))
    guilty = next((member for member in failed if not _is_lost(member)), None)
    code = _shell_code((guilty or failed[0]).process.returncode)
    if was_asked:
        return LaunchResult(code)
    text = _describe(guilty) if guilty else _describe_hung(hung)
    witnesses = [member for member in failed if _is_lost(member)]
    if witnesses and all(member.output for member in witnesses):
        text += _last_lines(witnesses[0], 1)
    return LaunchResult(code, text, may_restart=code != HanlinError.exit_code)


def _is_lost(member: RankProcess) -> bool:
    """Whether it ended only because of another one."""
    return member.process.returncode == RankError.exit_code


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _describe(member: RankProcess) -> str:
    """A failed process: how it ended, and its last words if they are not on the terminal."""
    code = member.process.returncode
    if code >= 0:
        return f"{member.name} failed with exit code {code}{_last_lines(member)}"
    if code == -signal.SIGKILL:
        return f"{member.name} was killed (SIGKILL): by hand, or because the machine ran out of memory"
    return f"{member.name} was ended by {signal.Signals(-code).name}{_last_lines(member)}"


def _describe_hung(hung: Sequence[RankProcess]) -> str:
    names = ", ".join(member.name for member in hung)
    return f"{names} did not answer the others and was killed" if hung else "the processes lost each other"


def _last_lines(member: RankProcess, count: int = 20) -> str:
    """What a process that does not write to our terminal said at last."""
    if member.output is None:
        return ""
    words = member.output.read_bytes()[member.begin :].decode("utf-8", "replace")
    lines = words.splitlines()[-count:]
    return "".join(f"\n  {line}" for line in [f"{member.name} said:", *lines]) if lines else ""
