"""The whole of `hanlin doctor`: the machine, its devices and the links between them, without torch in this process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hanlin.diagnosis.finding import Finding, guarded
from hanlin.diagnosis.machine import machine_findings

__all__ = ["examine", "findings_of", "ring_findings"]

DEVICE_SECONDS = 600.0
"""For all that is asked of the devices; the first call of each operation may be compiled."""

RING_SECONDS = 120.0
"""For the processes of a ring to start, meet and add."""

_POLL_SECONDS = 0.1
_DEVICES, _RING = "the devices", "ring of {} {}"


def examine(*, needs_npu: bool = False) -> Iterator[Finding]:
    """What there is to say, as it is found; needs_npu: an Ascend NPU that is not found is wrong."""
    yield from machine_findings()
    if needs_npu and not _has_torch_npu():
        yield Finding("torch_npu", "not installed: pip install torch_npu, of torch's version", is_well=False)
    devices: list[str] = []
    probe = [sys.executable, "-m", "hanlin.diagnosis.probe"]
    yield from guarded(_DEVICES, lambda: findings_of(probe, devices, DEVICE_SECONDS))
    if not devices:
        yield Finding("accelerator", "none, the CPU computes", not needs_npu)
    elif needs_npu and not devices[0].startswith("npu"):
        yield Finding("npu", f"there is none; found are {', '.join(devices)}", is_well=False)
    kind = devices[0].partition(":")[0] if devices else "cpu"
    count = max(len(devices), 1 if devices else 2)
    yield from guarded(_RING.format(count, kind), lambda: [ring_findings(kind, count)])


def _has_torch_npu() -> bool:
    try:
        return importlib.util.find_spec("torch_npu") is not None
    except (ImportError, ValueError):  # something of that name that is no package
        return False


def findings_of(command: Sequence[str], devices: list[str], seconds: float) -> Iterator[Finding]:
    """What a probe (probe.py) prints, while it prints; devices: gets those that it names.

    A probe that hangs is ended after `seconds`, and is a finding, as one that dies.
    """
    with tempfile.TemporaryDirectory(prefix="hanlin-doctor-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("wb") as told, err.open("wb") as complaints:
            process = subprocess.Popen(command, stdout=told, stderr=complaints, stdin=subprocess.DEVNULL)
        limit, begun = time.monotonic() + seconds, "to start"
        try:
            with out.open("rb") as lines:
                while True:
                    is_over = process.poll() is not None
                    for line in iter(lines.readline, b""):
                        told_of = _parsed(line)
                        begun = told_of.get("begins", begun)
                        devices.extend(told_of.get("devices", ()))
                        if "finding" in told_of:
                            yield Finding(**told_of["finding"])
                    if is_over or time.monotonic() > limit:
                        break
                    time.sleep(_POLL_SECONDS)
        finally:
            is_late = process.poll() is None
            process.kill()
            process.wait()
        if is_late:
            yield Finding(begun, f"no answer after {seconds:,.0f} s; it was ended", is_well=False)
        elif process.returncode != 0:
            yield Finding(begun, f"the process died ({process.returncode}): {_last_line(err)}", is_well=False)


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of ours; what a driver prints between them is nothing."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def ring_findings(kind: str, count: int, seconds: float = RING_SECONDS) -> Finding:
    """A sum over this many devices of a kind (processes, on a CPU), and how fast it goes."""
    name = _RING.format(count, kind)
    with tempfile.TemporaryDirectory(prefix="hanlin-doctor-") as folder:
        ranks: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            words = [
                sys.executable,
                "-m",
                "hanlin.diagnosis.ring",
                *map(str, (rank, count, Path(folder, "meeting"), kind)),
            ]
            with Path(folder, f"{rank}.out").open("wb") as out, Path(folder, f"{rank}.err").open("wb") as err:
                ranks.append(subprocess.Popen(words, stdout=out, stderr=err, stdin=subprocess.DEVNULL))
        limit = time.monotonic() + seconds
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < limit:
            if any(rank.poll() for rank in ranks):
                limit = min(limit, time.monotonic() + 1)  # the others wait for the one that failed
            time.sleep(_POLL_SECONDS)
        late = [number for number, rank in enumerate(ranks) if rank.poll() is None]
        for rank in ranks:
            rank.kill()
            rank.wait()
        failed = [number for number, rank in enumerate(ranks) if number not in late and rank.returncode != 0]
        if failed:
            return Finding(name, f"rank {failed[0]}: {_last_line(Path(folder, f'{failed[0]}.err'))}", is_well=False)
        if late:
            told = ", ".join(map(str, late))
            return Finding(name, f"no answer after {seconds:,.0f} s from ranks {told}; they were ended", is_well=False)
        lines = Path(folder, "0.out").read_text("utf-8", "replace").splitlines()
    facts = next((_parsed(line.encode()) for line in lines if _parsed(line.encode())), {})
    rate = f", {facts['gigabytes_per_second']:,.2f} GB/s per link" if count > 1 and facts else ""
    is_right = bool(facts.get("is_right"))
    return Finding(name, f"{facts.get('backend')}{rate}" + ("" if is_right else "; the sum is wrong"), is_right, facts)


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "nothing said"
