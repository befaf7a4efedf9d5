"""One rank of a run that only adds numbers; the command line says how it fails. For tests of launching.

small_rank.py FOLDER STEPS [how=kill|raise|hang|mistake] [rank=N] [step=N] [times=N] [timeout=S] [pause=S]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from hanlin.core.errors import DataError, HanlinError, noting
from hanlin.core.ranks import read_ranks
from hanlin.parallel.failure_report import report_failures
from hanlin.training.signals import StopSignals


def fail(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    raise DataError("rows.jsonl:3: not JSON") if how == "mistake" else ValueError("a defect")


def work(folder: Path, steps: int, options: dict[str, str]) -> int:
    """Count up to `steps` in a file, which is the checkpoint."""
    ranks, saved, attempts = read_ranks(), folder / "step", folder / f"attempts{read_ranks().rank}"
    attempt = int(attempts.read_text()) if attempts.exists() else 0
    attempts.write_text(str(attempt + 1))
    (folder / f"pid{ranks.rank}").write_text(str(os.getpid()))
    is_bad = ranks.rank == int(options.get("rank", -1)) and attempt < int(options.get("times", 1))
    step = 0
    with noting(lambda: f"step={step + 1}"), StopSignals() as signals:
        for step in range(int(saved.read_text()) if saved.exists() else 0, steps):
            if is_bad and step == int(options["step"]):
                fail(options["how"])
            told = torch.tensor([float(signals.requested)])
            distributed.all_reduce(told)
            if ranks.is_main:
                saved.write_text(str(step + 1))
                print("step", step + 1, flush=True)
            if told.item():
                return 75
            time.sleep(float(options.get("pause", 0)))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = dict(word.split("=") for word in sys.argv[3:])
    try:
        with report_failures(torch.device("cpu"), timeout_seconds=float(given.get("timeout", 30))):
            sys.exit(work(Path(sys.argv[1]), int(sys.argv[2]), given))
    except HanlinError as error:
        print("hanlin:", error, file=sys.stderr)
        sys.exit(error.exit_code)
