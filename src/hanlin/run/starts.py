"""`starts.jsonl` in a run folder: when, where and on which data a run was started; a JSON object per start."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.device import device_memory
from hanlin.core.files import replaced_file
from hanlin.core.machine import cpu_name, ram_bytes
from hanlin.core.ranks import read_ranks
from hanlin.core.version import version
from hanlin.training.run_curves import STARTS

if TYPE_CHECKING:
    import torch

    from hanlin.data.report import DataReport

__all__ = ["note_start"]

_MOST_NOTES = 10


def note_start(folder: Path, device: torch.device, threads: int, data: Mapping[str, DataReport]) -> None:
    """Add a start to the file of a run folder, if this is the main process; data: by part (train, eval)."""
    ranks = read_ranks()
    if not ranks.is_main:
        return
    path = folder / STARTS
    before = path.read_bytes() if path.is_file() else b""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = {part: _told(report) for part, report in data.items()}
    start = {"time": time, "machine": _machine(device, threads, ranks.world), "data": told}
    with replaced_file(path) as stream:
        stream.write(before + json.dumps(start, ensure_ascii=False).encode() + b"\n")


def _machine(device: torch.device, threads: int, processes: int) -> dict[str, Any]:
    """What of the machine and the programs numbers and speed depend on."""
    import torch

    card = device_memory(device)
    return {
        "hanlin": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": str(device) if card is None else f"{device.type}: {card[0]}, {card[1] / 2**30:,.1f} GiB",
        "processes": processes,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory": f"{(ram_bytes() or 0) / 2**30:,.1f} GiB",
    }


def _told(report: DataReport) -> dict[str, Any]:
    """All of a report, but for rows that are like others."""
    told = asdict(report)
    notes = sorted(report.counts.notes.items(), key=lambda one: -one[1])[:_MOST_NOTES]
    told["counts"] |= {"notes": dict(notes), "examples": report.counts.examples[:_MOST_NOTES]}
    return told
