"""Every script of benchmarks/ runs at its smallest sizes, as a process of its own, agreement checks included.

It is forked from this one, in which torch and hanlin are imported already.

`make test` runs those that start one process and end soon, `make drill` all of them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
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
    *("serve", "startup", "weight_dtypes"),
    *("decode", "pack_cpm2", "profile_step", "step_chatglm2", "step_cpm2", "step_cpm_bee"),
)
SOME_PARTS = "machine,numbers,dtypes,repeats,packed,group"
"""Of the device check."""
LACKS = 77
"""Exit code of a script that lacks a file or a package; its last line says which (benchmarks/script.py)."""


def run(name: str, folder: Path, *options: str) -> tuple[int | None, str]:
    """The exit code of a script, and what it said."""
    said = folder / "said.txt"
    process = multiprocessing.get_context("fork").Process(
        target=_be_script, args=(FOLDER / f"{name}.py", said, options)
    )
    process.start()
    process.join()
    words = said.read_text("utf-8")
    if process.exitcode == LACKS:
        pytest.skip(words.splitlines()[-1])
    return process.exitcode, words


def _be_script(file: Path, said: Path, options: tuple[str, ...]) -> None:
    with said.open("wb") as target:
        for stream in (1, 2):
            os.dup2(target.fileno(), stream)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(ROOT)
    sys.path.insert(0, str(FOLDER))
    sys.argv = [str(file), *options]
    runpy.run_path(str(file), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(SMOKING, [name for name in SMOKING if name not in LONG]))
def test_a_smoke_run_ends_with_a_report(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    code, said = run(name, tmp_path, "--smoke", "--out", str(out))
    assert code == 0, said
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures.keys() > {"machine", "date", "load_at_end", "cores"}


@pytest.mark.slow
@pytest.mark.parametrize("only", sampled(["", SOME_PARTS], [SOME_PARTS]), ids=["all", "some"])
def test_the_device_check_runs_its_parts_without_a_device(only: str, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--tiny", "--budget", "7200", *(["--only", only] if only else [])]
    code, said = run("device_check", tmp_path, str(tmp_path), *options)
    assert code == 0, said
    parts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["parts"]
    asked = set(only.split(",")) if only else set(parts)
    assert {name: parts[name]["state"] for name in asked} == dict.fromkeys(asked, "done")
    assert {"machine", "numbers", "packed", "repeats"} <= parts.keys()
    assert "needs CUDA" in parts["group"]["results"]["nccl"]["skipped"]


def test_a_smoke_run_does_not_overwrite_results(tmp_path: Path) -> None:
    code, said = run("startup", tmp_path, "--smoke", "--out", str(FOLDER / "results" / "startup.json"))
    assert code == 2
    assert "do not belong into benchmarks/results" in said
