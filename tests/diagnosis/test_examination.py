"""Whatever a device does, `hanlin doctor` says it and comes to its end."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hanlin.cli.main import main as command
from hanlin.diagnosis import probe
from hanlin.diagnosis.devices import device_findings, torch_findings, version_findings
from hanlin.diagnosis.examination import examine, findings_of, ring_findings
from hanlin.diagnosis.finding import Finding, guarded
from hanlin.diagnosis.machine import machine_findings
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


def _boom(*words: Any, **options: Any) -> None:
    raise RuntimeError("driver too old")


def test_a_machine_without_facts_is_told_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [finding.name for finding in machine_findings()]
    monkeypatch.setattr("os.getcwd", _boom)
    monkeypatch.setattr("platform.platform", _boom)
    monkeypatch.setattr("os.sysconf", _boom)
    found = {finding.name: finding for finding in machine_findings()}
    assert list(found) == usual
    for name in ("python", "memory", "disk here"):
        assert found[name].text == "RuntimeError: driver too old"
        assert not found[name].is_well


@pytest.mark.parametrize("call", ["current_accelerator", "device_count"])
def test_an_accelerator_that_cannot_be_asked_leaves_the_rest_of_the_report(
    call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, call, _boom)
    monkeypatch.setattr(probe, "probes", lambda devices: [("torch", torch_findings), (str(devices), lambda: [])])
    probe.main()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {one["finding"]["name"]: one["finding"] for one in told if "finding" in one}
    assert found["the accelerators"]["text"] == "RuntimeError: driver too old"
    assert {"devices": []} in told
    assert found["torch"]["is_well"]


CALLS = ("mem_get_info", "get_device_capability", "get_device_name", "is_bf16_supported")


@pytest.mark.parametrize("broken", [*CALLS, None])
def test_a_device_that_fails_to_say_something_says_the_rest(
    broken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ((2**30, 2**31), (9, 1), "a card", True)
    calls: dict[str, Any] = {
        name: lambda *_, answer=answer: answer for name, answer in zip(CALLS, answers, strict=True)
    }
    if broken is not None:
        calls[broken] = _boom
    monkeypatch.setattr(torch, "meta", SimpleNamespace(**calls), raising=False)
    [found] = device_findings(torch.device("meta"))
    told = {"mem_get_info": "1.0 GiB free of 2.0", "get_device_capability": "9.1", "get_device_name": "a card"}
    for name, text in told.items():
        assert (text in found.text) == (name != broken)
    assert ("driver too old" in found.text) == (broken is not None)
    assert found.is_well == (broken is None)
    json.dumps(found.as_json())


SAID = {
    "550.54.15": "driver 550.54.15",
    "NVIDIA-SMI has failed because it could not talk to the driver": "",
    "\\377\\376\\000": "",
    "560.1\\n560.1": "driver 560.1",
}


@pytest.mark.parametrize("said", SAID)
def test_what_nvidia_smi_says_is_a_version_or_nothing(
    said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    text = "".join(finding.text for finding in version_findings("cuda"))
    assert (SAID[said] in text) if SAID[said] else "driver" not in text


def test_a_machine_without_room_for_temporary_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*words: Any, **options: Any) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", no_room)
    found = {finding.name: finding for finding in examine()}
    for name in ("the devices", "ring of 2 cpu"):
        assert "No usable temporary directory" in found[name].text
        assert not found[name].is_well


def test_a_narrow_terminal_shows_every_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("accelerator", "[none], the CPU computes"), Finding("npu", "there is none", is_well=False)]
    monkeypatch.setattr("hanlin.diagnosis.examination.examine", lambda **_: findings)
    monkeypatch.setenv("COLUMNS", "24")
    assert command(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert sum(map(str.isalpha, shown)) == sum(map(str.isalpha, "acceleratornoneTheCPUcomputesnputhereisnoneokwrong"))
    monkeypatch.setenv("COLUMNS", "200")
    assert command(["doctor", "--json"]) == 1
    assert [one["text"] for one in json.loads(capsys.readouterr().out)["findings"]] == [one.text for one in findings]
