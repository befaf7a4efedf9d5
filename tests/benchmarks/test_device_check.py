"""benchmarks/device_check.py: which parts run, in which order, and what a failing one leaves behind."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

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
