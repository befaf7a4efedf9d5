"""Runs a test's function on several ranks, each a process forked from this one (torch is imported only once)."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import pickle
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

_LATER = (
    *("hanlin.checkpoint.metadata", "hanlin.training.optimizers.adamw"),
    *(f"hanlin.parallel.{name}" for name in ("experts", "pipeline", "shard", "stages", "tensor")),
)
"""Seconds of work for each process that is forked, if they were not imported before."""
GRACE_SECONDS = 1.0
"""After the first failure the others have this long to end by themselves, unless a test gives them more."""


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_seconds: float = 300,
    grace_seconds: float = GRACE_SECONDS,
) -> list[Any]:
    """Call `function(*args)` on `world` ranks joined through gloo; return their results in the order of ranks.

    function: any callable, also a closure; asks `distributed.get_rank()` (or core.ranks) who it is.
    grace_seconds: after the first failure, for the others to end by themselves.
    Results must be picklable; tensors are copied. All ranks start from the same random numbers.
    Raises: AssertionError with the tracebacks of all failed ranks, the first to fail first; after the time-out too.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, which this system does not have")
    import_once()
    with tempfile.TemporaryDirectory() as folder:
        fork = multiprocessing.get_context("fork")
        limit = time.monotonic() + timeout_seconds
        children: list[BaseProcess] = [
            fork.Process(target=_rank, args=(rank, world, Path(folder), timeout_seconds, function, args), daemon=True)
            for rank in range(world)
        ]
        try:
            for child in children:
                child.start()
            _wait(children, limit, grace_seconds)
        finally:
            for child in children:
                if child.pid is not None:
                    child.kill()
                    child.join()
        _raise_failures(children, Path(folder), is_late=time.monotonic() > limit)
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(world)]


def import_once() -> None:
    """What any rank imports, before it is forked."""
    for name in _LATER:
        importlib.import_module(name)


def _rank(
    rank: int, world: int, folder: Path, timeout_seconds: float, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    gc.freeze()  # what came along is looked at no more, and so not copied
    tempfile.tempdir = str(folder)  # nothing that a rank makes outlives the ranks
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout_seconds),
        )
        result = pickle.dumps(function(*args))
        if distributed.is_initialized():
            distributed.barrier()  # nobody leaves while another still talks to it
            distributed.destroy_process_group()
        (folder / f"{rank}.result").write_bytes(result)
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)  # not through destructors, which may wait for ranks that are gone
    os._exit(0)  # nor through what the parent has registered for its own end


def _wait(children: Sequence[BaseProcess], limit: float, grace_seconds: float) -> None:
    """Until all have ended, or the first failure and its grace, or the limit."""
    while any(child.exitcode is None for child in children) and time.monotonic() < limit:
        if any(child.exitcode for child in children):
            limit = min(limit, time.monotonic() + grace_seconds)
            while any(child.exitcode is None for child in children) and time.monotonic() < limit:
                time.sleep(0.01)
            return
        time.sleep(0.01)


def _raise_failures(children: Sequence[BaseProcess], folder: Path, *, is_late: bool) -> None:
    if all(child.exitcode == 0 for child in children):
        return
    codes = ", ".join(f"rank {rank}: {child.exitcode}" for rank, child in enumerate(children))
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    told = [f"--- rank {path.stem} ---\n{path.read_text(encoding='utf-8')}" for path in errors]
    reason = "too late" if is_late else "failed"
    raise AssertionError("\n".join([f"{reason}; exit codes ({codes}; -9: killed here)", *told]))
