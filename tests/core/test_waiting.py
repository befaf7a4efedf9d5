"""Where a thread is said to wait, also in a checkout or a home that is called hanlin."""

from __future__ import annotations

from pathlib import Path
from traceback import FrameSummary

import hanlin
from hanlin.core.waiting import describe_main_thread, describe_wait

LIBRARIES = "/home/hanlin/.venv/lib/python3.11/site-packages"


def test_the_collective_and_our_line_that_led_to_it_are_told() -> None:
    frames = [
        FrameSummary("/home/hanlin/train.py", 1, "main"),
        FrameSummary(f"{Path(hanlin.__file__).parent}/parallel/gradients.py", 112, "add"),
        FrameSummary(f"{LIBRARIES}/torch/distributed/c10d_logger.py", 83, "wrapper"),
        FrameSummary(f"{LIBRARIES}/torch/distributed/distributed_c10d.py", 2, "all_reduce"),
    ]
    assert describe_wait(frames) == "all_reduce, called in parallel/gradients.py:112 (add)"
    assert describe_wait([frames[0], *frames[2:]]) == "all_reduce"
    assert describe_wait(frames[:2]) == ""


def test_elsewhere_the_line_that_runs_is_told() -> None:
    assert describe_main_thread().endswith("(describe_main_thread)")
