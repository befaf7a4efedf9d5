"""`metrics.jsonl`: one JSON object a line, a line for each step and one for each evaluation.

A step has step, loss, lr, grad_norm, tokens, loss_tokens, tokens_per_second, seconds, data_seconds, scale,
skipped; an evaluation has step, eval_loss and whatever else it measured as eval_*. A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hanlin.core.files import replaced_file


class MetricsFile:
    """Appends lines; each is in the file when `write` returns.

    last_step: lines of later steps are removed first, as the run goes on after it; so is a line that was cut off.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        _cut_after(path, last_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        finite = {name: None if _is_broken(value) else value for name, value in values.items()}
        self._stream.write(json.dumps({"step": step, **finite}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._stream.close()


def _cut_after(path: Path, last_step: int) -> None:
    if not path.is_file():
        return
    with path.open("rb") as lines, replaced_file(path) as kept:
        kept.writelines(line for line in lines if _step_of(line) <= last_step)


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
