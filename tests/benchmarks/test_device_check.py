"""benchmarks/device_check.py: which parts run, in which order, and what a failing one leaves behind."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_parts_that_never_ran_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    check = importlib.import_module("device_check")
    states = {"machine": "done", "kernels": "failed", "numbers": "running", "full": "no_time"}
    results = check.Results(tmp_path / "results.json", {"parts": {name: {"state": s} for name, s in states.items()}})
    assert check.choose_parts(results, None) == [
        *(name for name in check.PARTS if name not in ("machine", "kernels", "numbers")),
        *("kernels", "numbers"),
    ]
    assert check.choose_parts(results, ["machine", "kernels"]) == ["machine", "kernels"]


def test_a_failing_part_leaves_its_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    check = importlib.import_module("device_check")

    def fail(bench: object) -> None:
        raise RuntimeError("the kernel has no shape")

    part = importlib.import_module("device_parts").Part
    parts = {"bad": part(fail, 1), "good": part(lambda bench: bench.keep("sum", 2), 1), "long": part(fail, 1000)}
    monkeypatch.setattr(check, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["device_check.py", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit, match="1"):
        check.main()
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["parts"]
    assert found["bad"]["state"] == "failed"
    assert found["bad"]["error"].endswith("RuntimeError: the kernel has no shape")
    assert (found["good"]["state"], found["good"]["results"]) == ("done", {"sum": 2})
    assert found["long"]["state"] == "no_time"
    assert "the kernel has no shape" in capsys.readouterr().out


def test_a_part_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    check = importlib.import_module("device_check")
    went_on, asked = threading.Event(), []

    def hang(bench: object) -> None:
        assert went_on.wait(60)

    part = importlib.import_module("device_parts").Part
    monkeypatch.setattr(check, "PARTS", {"stuck": part(hang, 0), "other": part(lambda bench: None, 100)})
    monkeypatch.setattr(check, "LEAST_PATIENCE", 0.05)
    monkeypatch.setattr(os, "closerange", lambda *_: None)
    monkeypatch.setattr(os, "execv", lambda _, words: (asked.extend(words), went_on.set()))
    monkeypatch.setattr(sys, "argv", ["device_check.py", str(tmp_path), "--device", "cpu"])
    monkeypatch.delenv(check.START, raising=False)
    told: list[dict[str, object]] = []
    monkeypatch.setattr(check.Results, "set", lambda self, name, **facts: told.append({"part": name, **facts}))
    with pytest.raises(SystemExit):
        check.main()
    assert {"part": "stuck", "state": "failed", "seconds": 0.05, "error": "not done after 0 s, and left behind"} in told
    assert asked[asked.index("--only") + 1] == "other"
    monkeypatch.delenv(check.START, raising=False)


def test_what_does_not_fit_is_measured_with_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    parts = importlib.import_module("device_parts")

    def measure(bench: object, method: str, *, layers: int | None, steps: int) -> dict[str, object]:
        if layers is None or layers > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"layers": layers}

    monkeypatch.setattr(parts, "measure_steps", measure)
    bench = parts.Bench(torch.device("cpu"), True, print)
    most = 7
    assert parts.time_steps(bench, "full", steps=3) == {"layers": 7, "out_of_memory_with": ["all", 14]}
    most = 1
    with pytest.raises(torch.OutOfMemoryError):
        parts.time_steps(bench, "full", steps=3)


def test_all_parts_fit_into_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    check = importlib.import_module("device_check")
    monkeypatch.setattr(sys, "argv", ["device_check.py", "folder", "--device", "cpu"])
    assert sum(part.seconds for part in check.PARTS.values()) <= check.parse().budget


def test_products_are_counted_by_dtype_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    details = importlib.import_module("device_details")
    layer = torch.nn.Linear(4, 4, bias=False)
    with details.Products() as products:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(torch.randn(2, 4, requires_grad=True))
        (mixed.float() @ torch.randn(4, 4)).sum().backward()
    assert products.counts == {
        "forward bfloat16": 1,
        "forward float32": 1,
        "backward bfloat16": 2,
        "backward float32": 1,
    }


def test_operations_that_do_not_repeat_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    details = importlib.import_module("device_details")

    def run() -> None:
        torch.empty(3)
        drawn = torch.rand(3)
        (drawn * 2 + torch.ones(3)).sum()

    assert details.differing_operations(run) == {"rand": 1}
    assert details.sum_of_bits(torch.tensor([1.0, 2])) != details.sum_of_bits(torch.tensor([2.0, 1]))


def test_the_table_names_the_card_and_sets_the_plan_beside_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    check = importlib.import_module("device_check")
    card = {"name": "NVIDIA H100", "gib": 79.1, "capability": "9.0"}
    step = {"layers": 28, "tokens_per_second": 17000, "peak_gib": 33.0, "reserved_gib": 35.5, "planned_gib": 30.0}
    values = {
        "torch": "2.13.0",
        "python": "3.12.1",
        "parts": {
            "machine": {"state": "done", "seconds": 5, "results": {"device": card}},
            "adapters": {"state": "done", "seconds": 30.2, "results": {"lora": step}},
            "group": {"state": "failed", "error": "Traceback\nRuntimeError: no NCCL"},
        },
    }
    lines = check.summary(check.Results(tmp_path / "results.json", values)).splitlines()
    assert lines[0].startswith("NVIDIA H100: gib 79.1, capability 9.0, torch 2.13.0, Python 3.12.1, ")
    assert f"| group | failed | - | {check.PARTS['group'].seconds} | RuntimeError: no NCCL |" in lines
    assert lines[-1] == "| adapters/lora | 28 | 17000 | - | 35.5 | 33.0 | 30.0 | 1.10 |"
    assert all(line.count("|") == 9 for line in lines[-3:]), "a table"
