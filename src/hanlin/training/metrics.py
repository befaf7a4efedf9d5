"""`metrics.jsonl`: one JSON object a line, a line for each step and one for each evaluation.

A step has step, loss, lr, grad_norm, tokens, loss_tokens, tokens_per_second, seconds, data_seconds, cpu_seconds,
memory_gib, peak_memory_gib, scale, skipped; on devices whose peak is known (core/cards.py) also mfu, the share of it
that the model needed (needed_flops.py). An evaluation has step, eval_loss and whatever else it measured as eval_*. A
number that is not finite is null.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hanlin.core.errors import CheckpointError, shorten
from hanlin.core.files import replaced_file
from hanlin.core.os_errors import naming

log = logging.getLogger(__name__)


class MetricsFile:
    """Appends lines; each is in the file when `write` returns.

    last_step: lines of later steps are removed first, as the run goes on after it; so is a line that was cut off. A
    file with other damage is kept as it was beside the new one (`metrics.damaged.jsonl`), and told.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = os.open(path.parent, os.O_RDONLY)  # while it is open no other folder gets its inode
        _cut_after(path, last_step)
        self._stream = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Raises: CheckpointError when the folder was removed, or another one has taken its place."""
        self._follow_path()
        finite = {name: None if _is_broken(value) else value for name, value in values.items()}
        with naming(self._path):
            self._stream.write(json.dumps({"step": step, **finite}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        with naming(self._path):
            self._stream.close()
        os.close(self._folder)

    def _follow_path(self) -> None:
        """See that what is written lands where the path leads; a file that an editor replaced is opened anew."""
        folder = self._path.parent
        if not _is_at(self._folder, folder):
            raise CheckpointError(
                f"{folder}: was removed or replaced while the run was writing there; the run ends, and what was in "
                "it is lost if there is no copy; the same command begins anew"
            )
        if not _is_at(self._stream.fileno(), self._path):
            log.error("%s: was removed or replaced while the run was writing to it; going on in a new one", self._path)
            self._stream.close()
            self._stream = self._path.open("a", encoding="utf-8", buffering=1)


def missing_steps(path: Path, last_step: int) -> list[str]:
    """The steps up to `last_step` of which `metrics.jsonl` has no line, as ranges: 3, 7-9."""
    found = {_step_of(line) for line in _lines(path) if b'"loss"' in line}
    ranges: list[list[int]] = []
    for step in range(1, last_step + 1):
        if step in found:
            continue
        if ranges and ranges[-1][1] == step - 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def _is_at(handle: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle), path.stat())


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _cut_after(path: Path, last_step: int) -> None:
    lines = _lines(path)
    damaged = [number for number, line in enumerate(lines, 1) if _step_of(line) == math.inf and line.endswith(b"\n")]
    if damaged:
        copy = path.with_suffix(f".damaged{path.suffix}")
        shutil.copyfile(path, copy)
        shown = ", ".join(shorten([str(number) for number in damaged]))
        log.error("%s: damaged lines are left out (%s); the file as it was is kept as %s", path, shown, copy.name)
    kept = [line for line in lines if _step_of(line) <= last_step]
    if len(kept) < len(lines):
        with replaced_file(path) as stream:
            stream.writelines(kept)


def _step_of(line: bytes) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
