"""Python, packages, memory and disk: what can be said without torch."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from hanlin.core.machine import ram_bytes
from hanlin.diagnosis.finding import Finding, guarded

__all__ = ["machine_findings"]

_PACKAGES = ("numpy", "safetensors", "pydantic", "PyYAML", "rich", "matplotlib", "ahocorasick_rs", "jieba")
_OPTIONAL = ("pypinyin", "tensorboard", "wandb", "swanlab")


def machine_findings() -> Iterator[Finding]:
    """Whatever of it cannot be found out is said, and the others go on."""
    yield from guarded("hanlin", lambda: [_package("hanlin")])
    yield from guarded("python", lambda: [Finding("python", f"{platform.python_version()}, {platform.platform()}")])
    for name in (*_PACKAGES, *_OPTIONAL):
        yield from guarded(name, lambda name=name: [_package(name)])
    yield from guarded("memory", lambda: [Finding("memory", _memory())])
    yield from guarded("disk here", lambda: [_disk()])


def _disk() -> Finding:
    disk = shutil.disk_usage(Path.cwd())
    return Finding("disk here", f"{disk.free / 1e9:,.1f} GB free of {disk.total / 1e9:,.1f}", disk.free > 1e9)


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        is_optional = name in _OPTIONAL
        return Finding(name, "not installed" + (" (optional)" if is_optional else ""), is_optional)


def _memory() -> str:
    found = ram_bytes()
    return "unknown" if found is None else f"{found / 1e9:,.1f} GB"
