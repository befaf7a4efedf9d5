"""Training on the stand-in accelerator (stand_in.py): the CPU's numbers, and never more waits than today.

All in one process beside this one, since the stand-in changes torch. `make test` runs some cells, `make drill` the
others; `python tests/accelerator/run.py` runs the whole matrix.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from layouts import VARIANTS
from sampled import sampled

RUNS = cycle(
    [
        ("cuda-sm90", "bf16", "packed.none"),
        ("npu", "fp32", "single.full"),
        ("cuda-sm70", "fp16", "packed.selective"),
        ("npu", "bf16", "packed.none"),
        ("mps", "fp16", "single.full"),
        ("npu-910a", "fp16", "packed.none"),
        ("cuda-sm90", "bf16", "single.none"),
    ]
)
"""By turns, so that every family and tuning sees several of them."""
WORDS = [
    (profile, precision, f"{name}.{method}.{rows}")
    for (name, variant) in VARIANTS.items()
    for method in variant.methods
    for (profile, precision, rows) in [next(RUNS)]
]
_TURNS = {f"{name}.{one.methods[number % len(one.methods)]}." for number, (name, one) in enumerate(VARIANTS.items())}
OFTEN = [words for words in WORDS if words[2].startswith((*_TURNS, "chatglm2.full.", "chatglm2.lora."))]
"""Every variant, each with one method by turns; every optimizer, and inputs of blocks in the CPU's memory."""
WITH_BIAS = ("cpm2", "cpm_bee")
"""Their attention adds numbers to the scores, for which torch_npu has no kernel."""

CAUSAL = ("chatglm2.", "cpm1.")
"""Their packed rows need no masks where flash attention takes samples one behind the other."""


LAUNCHES = {
    "cpm_bee": 2050, "cpm_bee-nf4": 3200, "chatglm2": 3850, "chatglm2-int8": 1950, "chatglm2-int4": 3460,
    "chatglm2-nf4": 2910, "chatglm2-turns": 2450, "chatglm2-turns-int4": 2580, "cpm1": 1670, "cpm1-nf4": 2010,
    "cpm1_t5": 3430, "cpm1_t5-int8": 3380, "cpm2": 3800, "cpm2-nf4": 4170,
}  # fmt: skip
"""The most kernels for a step of the small models, in whichever cell of `WORDS`. It only goes down."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    asked = [item.callspec.params for item in request.session.items if item.path == request.path]  # pyright: ignore
    words = [word for params in asked for word in params["words"]]
    program = Path(__file__).with_name("run.py")
    ran = subprocess.run([sys.executable, program, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return {line["cell"]: line for line in lines}


@pytest.mark.parametrize("words", sampled([(word,) for word in WORDS], [(word,) for word in OFTEN]), ids=" ".join)
def test_the_numbers_are_the_cpus_and_nothing_waits_for_the_device(
    found: dict[str, dict[str, Any]], words: tuple[str, str, str]
) -> None:
    result = found[" ".join(words)]
    assert "error" not in result, (result["error"], result["frames"])
    has_experts = VARIANTS[words[2].split(".")[0]].has_experts  # a last digit may send a token to another one
    near = 1e-5 if words[1] == "fp32" and not has_experts else 5e-3
    assert result["difference"] < near * abs(result["loss"])
    assert not result["unlisted"], ("not in hanlin/diagnosis/npu_operations.py", result["unlisted"])
    for costs in (result["step"], result["evaluation"]):
        if words[0].startswith("npu"):
            is_fused = words[0] == "npu" and not words[2].startswith(WITH_BIAS)
            assert costs["attention"].keys() == {"fused" if is_fused else "plain"}
        if words[0] == "cuda-sm90" and words[2].startswith(CAUSAL) and "packed" in words[2]:
            assert costs["attention"].keys() == {"varlen"}
    if has_experts:
        return  # which expert takes which token decides the shapes
    if offloaded := result.get("offloaded"):
        assert offloaded["difference"] < near * abs(result["loss"])
        assert offloaded["wait"] == 1, offloaded["places"]
        assert offloaded["copy"] > result["step"]["copy"]  # the inputs of blocks come back
    if preferred := result.get("preferred"):
        assert preferred["difference"] < near * abs(preferred["loss"])
        assert not preferred["unlisted"], ("not in hanlin/diagnosis/npu_operations.py", preferred["unlisted"])
        assert preferred["wait"] == 2, preferred["places"]  # losses and norm; what was measured
    parts, most = result["micro_batches"], LAUNCHES[words[2].split(".")[0]]
    assert result["step"]["launches"] <= most, result["step"]["launches"]
    assert result["step"]["wait"] == 1, result["step"]["places"]  # losses and norm
    assert result["evaluation"]["wait"] == 1, result["evaluation"]["places"]  # the losses of up to 64 forward passes
    for costs in (result["step"], result["evaluation"]):
        copies = {place: count for place, count in costs["places"].items() if place.startswith("copy")}
        # From pinned memory, a buffer for each micro-batch and one for its windows. Any other copy waits too: only
        # tables are copied so, when they are used first.
        sent = sum(count for place, count in copies.items() if place.startswith("copy to core/transfer.py"))
        assert sent <= 2 * parts, copies
        assert all(place.startswith(("copy to core/transfer.py", "copy to layers/nf4.py")) for place in copies), copies
