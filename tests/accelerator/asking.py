"""Cells asked of the stand-in accelerator, which changes torch: in a process of its own (run.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cells import Words


def ask(asked: Iterable[Words]) -> dict[Words, dict[str, Any]]:
    """What became of each cell; of one at which the process died that it did, and of those behind it."""
    wanted = list(asked)
    lines, last_words = run_cells([word for words in wanted for word in words])
    found = {tuple(line["cell"].split()): line for line in lines}
    assert not (last_words and found.keys() >= set(wanted)), f"it failed behind the last cell: {last_words}"
    died = {"error": f"the process died: {last_words}", "frames": []}
    return {words: found.get(words, died) for words in wanted}


def run_cells(words: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Lines of run.py's standard output, and where it did not end well the end of what it said besides."""
    program = Path(__file__).with_name("run.py")
    ran = subprocess.run([sys.executable, program, *words], capture_output=True, text=True, check=False)
    whole, _, _ = ran.stdout.rpartition("\n")  # a line may have been cut off
    last_words = f"exit code {ran.returncode}: {ran.stderr[-2000:]}" if ran.returncode else ""
    return [json.loads(line) for line in whole.splitlines()], last_words
