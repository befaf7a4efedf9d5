"""What this machine is: its processor and its memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["cpu_name", "free_ram_bytes", "ram_bytes"]


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def ram_bytes() -> int | None:
    """None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_ram_bytes() -> int | None:
    """What programs can take without others having to be moved out; None where the system does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
