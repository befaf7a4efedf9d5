from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from sampled import sampled
from two_machines import ADDRESSES, two_machines

from hanlin.parallel.launch import Rendezvous, node_commands

SMALL_RANK = Path(__file__).with_name("small_rank.py")


@pytest.fixture
def machines():
    """Two machines, and the means to start a shell command on each of them; all processes end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(machine: str, line: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
        process = subprocess.Popen(
            ["ip", "netns", "exec", machine, "sh", "-c", line],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    with two_machines() as names:
        yield names, start
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("how", sampled(["", "how=kill rank=1 step=2"], ["how=kill rank=1 step=2"]))
def test_ranks_of_two_machines_meet_and_start_anew_together(tmp_path, machines, how):
    names, start = machines
    lines = node_commands(dict.fromkeys(ADDRESSES, 1), [], Rendezvous(ADDRESSES[0], max_restarts=1)).values()
    work = f"{SMALL_RANK} {tmp_path} 5 {how}"
    processes = [start(name, line.replace("-m hanlin", work)) for name, line in zip(names, lines, strict=True)]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    said = sorted(line for out, _ in told for line in out.splitlines() if line)
    assert said == [f"step {number}" for number in range(1, 6)]
