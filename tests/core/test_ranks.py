import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from hanlin.core import ranks
from hanlin.core.device import communication_backend, pick_device
from hanlin.core.errors import ConfigError
from hanlin.core.logging import start_log
from hanlin.core.ranks import (
    LISTENING,
    Ranks,
    first_host,
    interface_towards,
    is_launched,
    join,
    meeting_socket,
    read_ranks,
)
from hanlin.core.seeds import random_states, restore_random_states, seed_everything

CPU = torch.device("cpu")


def draw() -> list[float]:
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    for name in [*names, *filter(lambda name: name.startswith("SLURM_"), os.environ)]:
        monkeypatch.delenv(name, raising=False)


def test_alone_without_a_launcher(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")  # a batch script that runs us without srun
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert read_ranks() == Ranks(0, 1, 0)
    assert not is_launched()
    assert join(CPU) is None


def test_ranks_of_torchrun_and_srun(monkeypatch):
    for name, value in {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert read_ranks() == Ranks(5, 8, 1)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert read_ranks() == Ranks(3, 4, 3)
    assert is_launched()


def test_one_process_per_pod_of_kubernetes(monkeypatch):
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "job-master-0"}.items():
        monkeypatch.setenv(name, value)
    assert read_ranks() == Ranks(2, 3, 0)


def test_processes_that_know_no_meeting_place_are_told_so(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes were started, but MASTER_PORT do"):
        join(CPU)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("node[07-09,12],login1", "node07"),
        ("node-[3,5]", "node-3"),
        ("rack[1-2]-[04-05].lan", "rack1-04.lan"),
    ],
)
def test_the_first_host_of_slurm_s_short_form(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked for as Linux tells them")
def test_the_interface_towards_a_host():
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no.such.host.invalid") is None


def test_device_that_is_not_there_is_named_with_those_that_are():
    assert pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"run\.device: 'npx' is not available here; available: cpu"):
        pick_device("npx")


def test_auto_takes_the_accelerator_of_torch(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert pick_device("auto") == CPU
    chosen = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    assert pick_device("auto", local_rank=1) == torch.device("xpu", 1)
    assert pick_device("xpu:0", local_rank=1) == torch.device("xpu", 0)
    assert chosen == [1, 0]
    with pytest.raises(ConfigError, match="0 to 1"):
        pick_device("xpu:2")
    with pytest.raises(ConfigError, match="0 to 1"):
        pick_device("xpu:a")


def test_a_seed_repeats_all_random_numbers():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first


def test_random_numbers_go_on_where_they_were():
    seed_everything(7)
    draw()  # numpy keeps half of a pair of normal numbers back
    states = random_states(CPU)
    expected = draw()
    restore_random_states(states, CPU)
    assert draw() == expected


def test_the_log_goes_to_the_file_on_the_main_rank_only(tmp_path, capsys):
    start_log(tmp_path / "main", Ranks(0, 2, 0))
    logging.getLogger("hanlin.training").info("step=%d", 1)
    start_log(tmp_path / "other", Ranks(1, 2, 1))
    logging.getLogger("hanlin.training").warning("step=%d", 2)
    assert (tmp_path / "main" / "log.txt").read_text().endswith("INFO step=1\n")
    assert not (tmp_path / "other").exists()
    assert "step=1" in capsys.readouterr().err


def test_importing_it_loads_neither_torch_nor_numpy():
    code = "import sys, hanlin.core.ranks; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


def test_a_foreign_accelerator_and_its_communication_are_found_by_torch_s_interface():
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot register an accelerator without C++")
    script = Path(__file__).with_name("stand_in_accelerator.py")
    run = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    answers = json.loads(run.stdout)
    assert (answers["auto"], answers["npu"], answers["npu:1"], answers["cpu"]) == ("npu:1", "npu:0", "npu:1", "cpu")
    assert "available: cpu, npu" in answers["cuda"]
    assert "npu devices here: 0 to 1" in answers["npu:2"]
    assert "use one process" in answers["before"]
    assert answers["after"] == "hccl"
    assert communication_backend(CPU) == "gloo"


def test_cuda_is_named_where_it_differs_from_other_accelerators_only():
    source = Path(__file__).parents[2] / "src" / "hanlin"
    named = [path.name for path in source.rglob("*.py") if re.search(r"""["']cuda|\.cuda\b""", path.read_text("utf-8"))]
    assert set(named) <= {
        "attention_kernels.py",
        "cards.py",
        "device.py",
        "devices.py",
        "flex.py",
        "nf4.py",
        "varlen.py",
    }


def test_nobody_else_gets_the_port_where_ranks_will_meet(monkeypatch):
    """It is taken before the first rank has read torch, and handed over; the second one may come before that."""
    with meeting_socket() as listening, socket.socket() as other:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 1}.items():
            monkeypatch.setenv(name, str(value))
        limit = timedelta(seconds=20)
        with ThreadPoolExecutor() as threads:
            second = threads.submit(ranks._store, Ranks(1, 2, 1), "127.0.0.1", limit)
            time.sleep(0.05)
            monkeypatch.setenv(LISTENING, str(os.dup(listening.fileno())))
            first = ranks._store(Ranks(0, 2, 0), "127.0.0.1", limit)
            first.set("word", "hello")
            assert LISTENING not in os.environ, "it is handed over once"
            assert second.result().get("word") == b"hello"
