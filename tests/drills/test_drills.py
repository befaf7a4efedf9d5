"""A short part of the drills; all of it: `make drill`. The output tells what was tried where something went wrong.

They run in a process of their own: commands are forked from one that has no threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parent / "drill.py"


def test_nothing_is_lost_differs_is_silent_or_ends_in_a_traceback() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, which this system does not have")
    command = [sys.executable, str(DRILL), "--scale", "0.007", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
