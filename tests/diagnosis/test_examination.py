"""Whatever a device does, `hanlin doctor` says it and comes to its end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from hanlin.diagnosis.examination import examine, findings_of, ring_findings
from hanlin.diagnosis.finding import Finding, guarded
from hanlin.diagnosis.npu_operations import is_listed
from hanlin.diagnosis.operations import EXAMPLES, _told_fallbacks, operation_findings

BEGINS = """import json, sys, time
print(json.dumps({"devices": ["npu:0"]}))
print("[INFO] a driver's own words")
print(json.dumps({"finding": {"name": "npu:0", "text": "there"}}))
print(json.dumps({"begins": "npu:0 product"}), flush=True)
"""


@pytest.mark.parametrize(
    ("ends", "seconds", "told"),
    [
        ("time.sleep(60)", 4.0, "no answer after 4 s"),
        ("sys.exit('a fault in a kernel')", 60.0, "died (1): a fault in a kernel"),
    ],
)
def test_a_device_that_hangs_or_dies_is_told_with_what_it_was_asked(ends: str, seconds: float, told: str) -> None:
    devices: list[str] = []
    found = list(findings_of([sys.executable, "-c", BEGINS + ends], devices, seconds))
    assert devices == ["npu:0"]
    assert found[0] == Finding("npu:0", "there")
    assert found[1].name == "npu:0 product"
    assert told in found[1].text
    assert not found[1].is_well


def test_a_part_that_fails_is_a_finding() -> None:
    def fails() -> Iterator[Finding]:
        yield Finding("first", "there")
        raise RuntimeError("out of streams\nand more")

    assert list(guarded("device", fails)) == [
        Finding("first", "there"),
        Finding("device", "RuntimeError: out of streams", is_well=False),
    ]


def test_a_ring_that_hangs_is_ended() -> None:
    found = ring_findings("cpu", 2, seconds=0.2)  # before torch is imported
    assert not found.is_well
    assert "from ranks 0, 1; they were ended" in found.text


def test_a_ring_whose_ranks_fail_says_why() -> None:
    found = ring_findings("no_such_device", 1)
    assert not found.is_well
    assert "no_such_device" in found.text


def test_an_npu_that_has_to_be_here_is_missed() -> None:
    missed = next(finding for finding in examine(needs_npu=True) if finding.name == "torch_npu")
    assert "pip install torch_npu" in missed.text
    assert not missed.is_well


def test_operations_handed_to_the_cpu_are_named() -> None:
    said = "CAUTION: The operator 'aten::{}' is not currently supported on the NPU backend and will fall back to run on"
    with _told_fallbacks() as names:
        warnings.warn(said.format("nextafter.out") + " the CPU. This may have performance implications.", stacklevel=1)
    assert names == {"nextafter.out"}


def test_every_example_runs_and_agrees_with_itself() -> None:
    for finding in operation_findings(torch.device("cpu")):
        assert finding.is_well, finding.text
        assert finding.facts["states"].keys() == EXAMPLES.keys()


def test_the_table_knows_dtypes() -> None:
    assert is_listed("softmax", torch.bfloat16)
    assert not is_listed("softmax", torch.float64)
    assert not is_listed("amax", torch.bfloat16)
    assert not is_listed("nextafter", torch.float32)
