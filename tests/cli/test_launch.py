from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hanlin.cli._launch import num_to_start
from hanlin.cli.main import main
from hanlin.core.errors import ConfigError
from hanlin.parallel.launch import _travels
from hanlin.recipe.reading import make_recipe

BARE = {"model": {"family": "cpm_bee"}, "run": {"folder": "run", "device": "cpu"}}


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("node0 slots=4\nme@node1 slots=2\n")
    return path


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_launch_prints_one_command_per_machine(
    hostfile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in os.environ:
        if _travels(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    assert main(["launch", "--hostfile", str(hostfile), "--port", "29501", "train", "my recipe.yaml", "--restart"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0::2] == ["# node0", "# me@node1"]
    start = f"cd {os.getcwd()} && env NCCL_SOCKET_IFNAME=eth1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
    start += f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120 {sys.executable} -m torch.distributed.run --nnodes 2 "
    start += "--rdzv-backend c10d --rdzv-id hanlin --rdzv-endpoint node0:29501"
    end = "--max-restarts 0 -m hanlin train 'my recipe.yaml' --restart"
    assert lines[1::2] == [
        f"{start} --rdzv-conf is_host=1 --local-addr node0 --nproc-per-node 4 {end}",
        f"{start} --rdzv-conf is_host=0 --local-addr node1 --nproc-per-node 2 {end}",
    ]


@pytest.mark.parametrize(
    ("name", "goes_along"),
    [
        ("CUDA_VISIBLE_DEVICES", True),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("ASCEND_RT_VISIBLE_DEVICES", True),
        ("HF_HOME", True),
        ("TORCHINDUCTOR_CACHE_DIR", True),
        ("HF_TOKEN", False),
        ("WANDB_API_KEY", False),
        ("HOME", False),
    ],
)
def test_what_decides_a_run_goes_along_and_no_secret(name: str, goes_along: bool) -> None:
    assert _travels(name) == goes_along


@pytest.mark.parametrize(
    ("options", "hosts"),
    [(["--include", "node0"], ["# node0"]), (["--exclude", "node0"], ["# me@node1"])],
)
def test_hosts_are_chosen(
    hostfile: Path, options: list[str], hosts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--hostfile", str(hostfile), *options, "train", "recipe.yaml"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")] == hosts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-restarts", "2", "train", "r.yaml", "--restart"], "drop one"),
        (["demo"], "expected train, evaluate, generate and a recipe"),
        (["--include", "node7", "train", "r.yaml"], "node7 not in the hostfile (node0, me@node1)"),
        (["--exclude", "node0@me", "train", "r.yaml"], "me not in the hostfile"),
    ],
)
def test_what_cannot_be_launched(
    hostfile: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--hostfile", str(hostfile), *words]) == 2
    assert message in capsys.readouterr().err


def test_launch_runs_the_commands_by_ssh(
    hostfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho on $4: $5\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    assert main(["launch", "--hostfile", str(hostfile), "--run", "train", "recipe.yaml"]) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line.split(":")[0] for line in lines] == ["on me@node1", "on node0"]
    assert all(line.endswith("-m hanlin train recipe.yaml") for line in lines)


def started(nproc: int | None, *, is_alone: bool = False, **parallel: int) -> int:
    recipe = make_recipe({**BARE, "parallel": parallel})
    return num_to_start(argparse.Namespace(nproc=nproc, is_alone=is_alone), recipe)


def test_how_many_processes_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(None) == 1
    assert started(3) == 3
    assert started(None, data=2, tensor=2) == 4
    monkeypatch.setattr("hanlin.core.device.num_devices", lambda setting: 7)
    assert started(None, pipe=2) == 6
    assert started(None, pipe=2, is_alone=True) == 1
    assert started(2, is_alone=True) == 2
    with pytest.raises(ConfigError, match=r"100,000 processes, and one machine starts at most 1,024"):
        started(None, data=100_000)


def test_a_launcher_has_the_last_word_about_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert started(None) == 1
    assert started(2) == 1
    with pytest.raises(ConfigError, match="already started 2 processes"):
        started(4)


def test_deepspeed_s_file_becomes_yaml_or_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2, "wall_clock_breakdown": True}))
    assert main(["deepspeed", str(file), "--data", "4"]) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["train"]["batch_size"] == 8
    assert "wall_clock_breakdown: has no meaning" in shown.err
    assert main(["deepspeed", str(file), "--data", "4", "--one-line"]) == 0
    assert "train.batch_size=8 train.micro_batch_size=2" in capsys.readouterr().out


def test_the_launcher_itself_needs_no_torch() -> None:
    program = "import sys, hanlin.parallel.launch, hanlin.parallel.failure_report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
