"""Answers on the stand-in accelerator (stand_in.py): those of the CPU, with one wait for each token.

Every operation stands in the table of those that Ascend NPUs have (hanlin/diagnosis/npu_operations.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ("cpm1", "cpm1_t5", "cpm2", "cpm_bee", "chatglm2", "chatglm2-int8", "chatglm2-int4", "cpm2-experts")
WITH_BIAS = ("cpm2", "cpm_bee")
"""Their attention adds numbers to the scores, for which torch_npu has no kernel."""


LAUNCHES = {
    "cpm1": 105, "cpm1_t5": 170, "cpm2": 231, "cpm_bee": 272, "chatglm2": 151,
    "chatglm2-int8": 421, "chatglm2-int4": 530, "cpm2-experts": 287,
}  # fmt: skip
"""The most kernels for a token of the small models, with whatever tuning and way to answer. It only goes down."""
ACTS = {
    "tensor": [1, 0, 1],
    "tensor of a number": [1, 0, 1],
    "new_tensor": [1, 0, 1],
    "as_tensor": [1, 0, 1],
    "to": [1, 0, 1],
    "list as index": [1, 0, 2],
    "made there": [0, 0, 2],
    "item": [0, 1, 2],
    "branch": [0, 1, 2],
    "boolean index": [0, 1, 2],
    "tolist": [0, 1, 0],
    "cpu": [0, 1, 1],
    "two products": [0, 0, 3],
}
"""Copies to the device, waits for it, kernel launches."""


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    program = Path(__file__).with_name("run.py")
    ran = subprocess.run([sys.executable, program, "answers"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_cpus_and_each_token_waits_once(found: list[dict[str, Any]], family: str) -> None:
    of_family = [one for one in found if one["cell"].startswith(f"{family}.") and "at once" not in one["cell"]]
    assert {one["cell"].split(".")[2] for one in of_family} == {"greedy", "sample", "beam"}
    for one in of_family:
        assert "error" not in one, (one["cell"], one["error"], one["frames"])
        assert one["same"], one["cell"]
        for costs in (one["prompt"], one["costs"]):
            assert not costs["unlisted"], (one["cell"], "not in hanlin/diagnosis/npu_operations.py", costs["unlisted"])
            if one["profile"] == "npu":
                assert costs["attention"].keys() == {"plain" if family.startswith(WITH_BIAS) else "fused"}
        if family == "cpm2-experts":
            continue  # which expert takes which token decides the shapes
        assert one["costs"]["wait"] == one["steps"], (one["cell"], one["costs"]["places"])
        assert one["costs"]["launches"] <= LAUNCHES[family] * one["steps"], (one["cell"], one["costs"]["launches"])
        # From pinned memory: any other copy waits too.
        copies = [place for place in one["costs"]["places"] if place.startswith("copy")]
        assert all("core/transfer.py" in place for place in copies), (one["cell"], copies)


@pytest.mark.parametrize("family", ["cpm1", "cpm1_t5", "cpm2", "cpm_bee", "chatglm2"])
def test_a_step_waits_once_whatever_its_rows_ask_for(found: list[dict[str, Any]], family: str) -> None:
    """Several methods, biases, penalties, and log probabilities that are noted; a lone answer with guesses ahead."""
    [one] = [one for one in found if one["cell"] == f"{family}.base.at once"]
    assert "error" not in one, (one["cell"], one["error"], one["frames"])
    assert one["same"], one["tokens"]
    for costs, steps in ((one["costs"], one["steps"]), (one["ahead"], one["ahead_steps"])):
        assert costs["wait"] == steps, costs["places"]
        assert not costs["unlisted"], ("not in hanlin/diagnosis/npu_operations.py", costs["unlisted"])
        copies = [place for place in costs["places"] if place.startswith("copy")]
        assert all("core/transfer.py" in place for place in copies), copies


def test_what_a_budget_counts(found: list[dict[str, Any]]) -> None:
    """Also small tensors that are made of numbers of the host, for which a device waits."""
    assert [one["costs"] for one in found if one["cell"] == "acts"] == [ACTS]
