"""Scores and answers of several processes by commands: the files of one process, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from data_files import write_rows

from hanlin.cli.main import main

CASE = Path(__file__).parents[1] / "golden" / "cases" / "bee_generate"
ROWS = [{"input": "今天天气北京"[:length] + "ab"[:more], "<ans>": "好"} for length in range(1, 6) for more in range(3)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def recipe_of(rows: Path, name: str) -> str:
    recipe = {
        "model": {"family": "cpm_bee", "base": str(CASE), "vocab": str(CASE / "vocab.txt")},
        "data": {"train": str(rows), "eval": str(rows), "max_length": 64, "cache": str(rows.parent / "cache")},
        "generate": {"beams": 2, "max_new_tokens": 12, "batch_size": 1},
        "evaluate": {"tasks": ["generate", "loss"]},
        "run": {"folder": str(rows.parent / name), "device": "cpu", "threads": 1},
    }
    path = rows.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return str(path)


def start(*words: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "hanlin", *words, "--nproc", "2"]
    return subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)


def code(*words: str) -> int:
    with start(*words) as process:
        process.communicate(timeout=600)
    return process.returncode


def results(rows: Path, name: str) -> dict[str, bytes]:
    folder = rows.parent / name / "evaluation"
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_two_processes_find_the_scores_of_one(rows: Path) -> None:
    assert main(["evaluate", recipe_of(rows, "alone")]) == 0
    target = rows.parent / "scores.json"
    assert code("evaluate", recipe_of(rows, "both"), "--json", str(target)) == 0
    assert results(rows, "both") == results(rows, "alone")
    assert (rows.parent / "both" / "logs" / "rank_1.log").is_file()
    assert json.loads(target.read_text()) == json.loads(results(rows, "alone")["metrics.json"])

    killed = recipe_of(rows, "killed")
    process = start("evaluate", killed)
    part = rows.parent / "killed" / "evaluation" / "predictions" / "generate.jsonl.part"
    limit = time.monotonic() + 300
    while not (part.exists() and part.stat().st_size) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # until the main rank is gone too, and with it its lock
    assert main(["evaluate", killed]) == 0
    assert results(rows, "killed") == results(rows, "alone")


@pytest.mark.slow
@pytest.mark.drill
def test_two_processes_write_the_answers_of_one(rows: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ["--base", str(CASE), "--vocab", str(CASE / "vocab.txt"), "generate.max_new_tokens=4"]
    words = ["generate", *model, "--input", str(rows), "--output"]
    assert main([*words, str(rows.parent / "alone.jsonl")]) == 0
    assert code(*words, str(rows.parent / "both.jsonl")) == 0
    assert (rows.parent / "both.jsonl").read_bytes() == (rows.parent / "alone.jsonl").read_bytes()
    assert main(["generate", *model, "--nproc", "2"]) == 2
    assert "cannot read standard input" in capfd.readouterr().err
