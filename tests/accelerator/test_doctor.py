"""What `hanlin doctor` asks of a device, asked of the stand-in accelerator (stand_in.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    program = Path(__file__).with_name("examine.py")
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_device_that_computes_as_the_cpu_is_well(told: dict[str, Any]) -> None:
    names = {finding["name"] for finding in told["findings"]}
    parts = ("product bf16", "product fp32", "copies", "attention auto", "operations bf16", "operations fp32")
    assert names == {"npu:0", *(f"npu:0 {part}" for part in parts)}
    assert all(finding["is_well"] for finding in told["findings"]), told["findings"]


def test_it_asks_for_every_operation_of_the_table_and_for_no_other(told: dict[str, Any]) -> None:
    assert not told["not_asked"]
    assert not told["unlisted"]
    assert told["attention"].keys() == {"fused", "plain"}
