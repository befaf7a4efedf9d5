"""Every script of benchmarks/ runs at its smallest sizes, as a process of its own, agreement checks included.

`make test` runs those that start one process and end soon, `make drill` all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampled import sampled

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
HELPERS = {"device_child", "device_details", "device_parts", "device_plan", "glm_peer", "script", "turns"}
"""What the scripts import, and nobody runs."""
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in HELPERS)
SMOKING = [name for name in SCRIPTS if name not in ("device_check", "run_all")]
LONG = (
    *("convert_ranks", "load_cpm_bee", "packed_bases", "real_size_chatglm2", "scaling", "stream_experts"),
    *("serve", "weight_dtypes"),
    *("decode", "profile_step", "step_chatglm2", "step_cpm2", "step_cpm_bee"),
)
SOME_PARTS = "machine,numbers,repeats,packed,group"
"""Of the device check."""
LACKS = 77
"""Exit code of a script that lacks a file or a package; its last line says which (benchmarks/script.py)."""


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    if done.returncode == LACKS:
        pytest.skip(done.stderr.splitlines()[-1])
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(SMOKING, [name for name in SMOKING if name not in LONG]))
def test_a_smoke_run_ends_with_a_report(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = run(name, "--smoke", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures.keys() > {"machine", "date", "load_at_end", "cores"}


@pytest.mark.slow
@pytest.mark.parametrize("only", sampled(["", SOME_PARTS], [SOME_PARTS]), ids=["all", "some"])
def test_the_device_check_runs_its_parts_without_a_device(only: str, tmp_path: Path) -> None:
    done = run("device_check", str(tmp_path), "--device", "cpu", "--tiny", *(["--only", only] if only else []))
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["parts"]
    asked = set(only.split(",")) if only else set(parts)
    assert {name: parts[name]["state"] for name in asked} == dict.fromkeys(asked, "done")
    assert {"machine", "numbers", "packed", "repeats"} <= parts.keys()
    assert "needs CUDA" in parts["group"]["results"]["nccl"]["skipped"]


def test_a_smoke_run_does_not_overwrite_results() -> None:
    done = run("startup", "--smoke", "--out", str(FOLDER / "results" / "startup.json"))
    assert done.returncode == 2
    assert "do not belong into benchmarks/results" in done.stderr
