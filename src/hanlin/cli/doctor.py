"""What this machine offers, and whether it computes rightly."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HELP = "look at this machine: torch, devices, threads, memory, disk"

_PACKAGES = ("numpy", "safetensors", "pydantic", "PyYAML", "rich", "matplotlib", "ahocorasick_rs", "jieba")
_OPTIONAL = ("pypinyin", "tensorboard", "wandb", "swanlab")
_SIZE = 1024  # of the test matrices
_REPEATS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from rich.table import Table

    from hanlin.core.terminal import screen

    table = Table(show_header=False)
    is_well = True
    for name, value, is_right in _findings():
        is_well &= is_right
        table.add_row(name, value, "[green]ok[/green]" if is_right else "[red]wrong[/red]")
    screen().print(table)
    return 0 if is_well else 1


def _findings() -> Iterator[tuple[str, str, bool]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}", True
    yield from _packages()
    yield "memory", _memory(), True
    disk = shutil.disk_usage(Path.cwd())
    yield "disk here", f"{disk.free / 1e9:,.1f} GB free of {disk.total / 1e9:,.1f}", disk.free > 1e9
    yield from _torch()


def _packages() -> Iterator[tuple[str, str, bool]]:
    for name in (*_PACKAGES, *_OPTIONAL):
        try:
            yield name, importlib.metadata.version(name), True
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed" + (" (optional)" if name in _OPTIONAL else ""), name in _OPTIONAL


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:,.1f} GB"


def _torch() -> Iterator[tuple[str, str, bool]]:
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}", False
        return
    yield "torch", torch.__version__, _version(torch.__version__) >= (2, 11)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "threads", f"{torch.get_num_threads()} of {cores} cores", torch.get_num_threads() <= cores
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator else 0
    yield "accelerator", f"{count} x {accelerator.type}" if accelerator else "none, the CPU computes", True
    for device in ["cpu", *([accelerator.type] if accelerator else [])]:
        yield f"matmul {device}", *_matmul(torch, device)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def _matmul(torch: Any, device: str) -> tuple[str, bool]:
    """Speed of a fp32 product, and whether it agrees with the same product in fp64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIZE, _SIZE, generator=generator).to(device) for _ in range(2))
    product = a @ b
    started = time.perf_counter()
    for _ in range(_REPEATS):
        product = a @ b
    checked = product.cpu()  # waits for the device
    seconds = (time.perf_counter() - started) / _REPEATS
    error = float((checked.double() - a.cpu().double() @ b.cpu().double()).abs().max())
    # sqrt(1024) terms of about 1 each: fp32 is near 1e-4, TF32 near 1e-1.
    return f"{2 * _SIZE**3 / seconds / 1e9:,.0f} GFLOP/s in fp32, largest error {error:.1e}", error < 0.5
