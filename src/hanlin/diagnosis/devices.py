"""A device's name, memory, arithmetic and versions, and how fast it multiplies and copies."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch

from hanlin.core.device import best_precision, has_bf16, has_fp64
from hanlin.diagnosis.finding import Finding, first_line
from hanlin.layers.precision import DTYPES

__all__ = ["copy_findings", "device_findings", "product_findings", "torch_findings", "version_findings", "wait"]

_SIZES = {"cpu": 512}
_SIZE = 4096  # of the test matrices on accelerators
_ENOUGH_SECONDS = 0.2
_COPIED_BYTES = 1 << 26
_VERSION = re.compile(r"\d+(\.\d+)+")


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    torch.ones(1, device=device).cpu()  # not every maker's part of torch has accelerator.synchronize


def torch_findings() -> Iterator[Finding]:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    yield Finding("torch", torch.__version__, version >= (2, 11))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("threads", f"{torch.get_num_threads()} of {cores} cores", torch.get_num_threads() <= cores)
    libraries = {"MKL": torch.backends.mkl.is_available(), "oneDNN": torch.backends.mkldnn.is_available()}
    known = [name for name, is_there in libraries.items() if is_there]
    yield Finding("cpu", ", ".join([torch.backends.cpu.get_cpu_capability(), *known]))


def device_findings(device: torch.device) -> Iterator[Finding]:
    """What it is; unknown is what its maker's part of torch does not say, and what it fails to say is told."""
    module, failed = getattr(torch, device.type, None), {}

    def ask(name: str) -> Any:
        return _ask(getattr(module, name, None), failed, name, device)

    memory, capability = ask("mem_get_info"), ask("get_device_capability")
    free, total = memory if isinstance(memory, tuple) and len(memory) == 2 else (None, None)
    knows_bf16 = _ask(has_bf16, failed, "bf16", device)
    arithmetic = ["fp32", "fp16", *(["bf16"] if knows_bf16 else []), *(["fp64"] if has_fp64(device) else [])]
    facts = {
        "name": ask("get_device_name"),
        "memory_bytes": total,
        "free_bytes": free,
        "capability": capability and (list(capability) if isinstance(capability, tuple) else str(capability)),
        "arithmetic": arithmetic,
        "precision_auto": _ask(best_precision, failed, "precision", device),
        "failed": failed,
    }
    room = "memory unknown" if not total or free is None else f"{free / 2**30:,.1f} GiB free of {total / 2**30:,.1f}"
    version = f", capability {'.'.join(map(str, capability))}" if isinstance(capability, tuple) else ""
    what = f"{facts['name'] or 'name unknown'}, {room}{version}"
    lacking = "".join(f"; {name}: {error}" for name, error in failed.items())
    yield Finding(
        str(device), f"{what}; {' '.join(arithmetic)}; auto is {facts['precision_auto']}{lacking}", not failed, facts
    )


def _ask(function: Callable[..., Any] | None, failed: dict[str, str], name: str, *words: Any) -> Any:
    """What a maker's function says; None where there is none, or where it fails, which is noted."""
    if function is None:
        return None
    try:
        return function(*words)
    except NotImplementedError:
        return None
    except Exception as error:  # whatever a driver raises is what this command is asked for
        failed[name] = first_line(error)
        return None


def version_findings(kind: str) -> Iterator[Finding]:
    """Of the driver and of the maker's libraries under torch."""
    failed: dict[str, str] = {}
    versions: dict[str, Any] = {}
    if kind == "cuda":
        versions = {"CUDA": torch.version.cuda, "HIP": getattr(torch.version, "hip", None)}
        versions["cuDNN"] = _ask(torch.backends.cudnn.version, failed, "cuDNN")
        versions |= {"driver": _ask(_driver, failed, "driver"), "NCCL": _ask(_nccl_version, failed, "NCCL")}
    elif kind == "npu":
        versions = {"torch_npu": _ask(_torch_npu_version, failed, "torch_npu")}
        versions["CANN"] = getattr(torch.version, "cann", None)
        versions |= _ask(_cann_versions, failed, "CANN") or {}
    told = {name: str(version) for name, version in versions.items() if version}
    if told or failed:
        texts = [f"{name} {version}" for name, version in told.items()]
        texts += [f"{name} unknown ({error})" for name, error in failed.items()]
        yield Finding("versions", ", ".join(texts), facts=told)


def _nccl_version() -> str:
    return ".".join(map(str, importlib.import_module("torch.cuda.nccl").version()))


def _torch_npu_version() -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("torch_npu")
    return None


def _driver() -> str | None:
    """What nvidia-smi says, where that is there and says a version."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False).stdout
    found = _VERSION.search(said[:1000].decode("utf-8", "replace"))
    return found and found[0]


def _cann_versions() -> dict[str, str]:
    """From CANN 8.1 on; the function has stood in two places."""
    for place in ("torch_npu.utils", "torch_npu.npu.utils"):
        with suppress(ImportError, AttributeError, OSError):
            ask = importlib.import_module(place).get_cann_version
            return {name: str(ask(module=name)) for name in ("CANN", "DRIVER", "HCCL") if ask(module=name)}
    return {}


def product_findings(device: torch.device) -> Iterator[Finding]:
    """Speed of products, whether they agree with the same product in fp64 on the CPU, and with themselves."""
    half = "fp16" if device.type != "cpu" and not has_bf16(device) else "bf16"
    for precision, bound in ((half, 0.02), ("fp32", 2e-3)):  # TF32 has 10 bits, as fp16
        yield _product(device, precision, bound)


def _product(device: torch.device, precision: str, bound: float) -> Finding:
    size = _SIZES.get(device.type, _SIZE)
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=draw).to(DTYPES[precision]) for _ in range(2))
    a, b = left.to(device), right.to(device)
    first = (a @ b).cpu()
    seconds, again = _seconds(lambda: a @ b, device)
    expected = left[:64].double() @ right.double()
    error = float((first[:64].double() - expected).abs().max() / expected.abs().max())
    is_steady = first.equal(again.cpu())
    speed = 2 * size**3 / seconds / 1e12
    text = f"{speed:,.2f} TFLOP/s, largest error {error:.0e} of the largest number"
    facts = {"tflops": speed, "error": error, "same_bits": is_steady, "size": size}
    return Finding(
        f"{device} product {precision}",
        text + ("" if is_steady else "; other bits each time"),
        error < bound and is_steady,
        facts,
    )


def copy_findings(device: torch.device) -> Iterator[Finding]:
    """Gigabytes per second between pinned memory and the device, and inside of it."""
    host = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, pin_memory=device.type != "mps")
    there, also_there = (torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    rates = {
        "to the device": _seconds(lambda: there.copy_(host, non_blocking=True), device)[0],
        "from it": _seconds(lambda: host.copy_(there, non_blocking=True), device)[0],
        "inside": _seconds(lambda: also_there.copy_(there), device)[0],
    }
    rates = {name: _COPIED_BYTES / seconds / 1e9 for name, seconds in rates.items()}
    yield Finding(
        f"{device} copies", ", ".join(f"{rate:,.1f} GB/s {name}" for name, rate in rates.items()), facts=rates
    )


def _seconds(run: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    """Of one run after the first, and what the last one made."""
    result = run()
    wait(device)
    started, rounds = time.perf_counter(), 0
    while rounds < 2 or (time.perf_counter() - started < _ENOUGH_SECONDS and rounds < 50):
        result, rounds = run(), rounds + 1
        wait(device)
    return (time.perf_counter() - started) / rounds, result
