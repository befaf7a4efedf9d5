"""What all tests share: one thread, an untouched log, and the files that may not be distributed with the project."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: small tensors are slower with more threads, and sums differ between thread counts.
os.environ["OMP_NUM_THREADS"] = "1"
# The tests compute on the CPU; with other devices autograd has threads, and a process with threads must not be forked.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# What is said is compared with English words, whatever the locale.
os.environ["HANLIN_LANG"] = "en"

import torch

# Autograd looks for devices once, at the first backward pass. Later it could meet the pretended ones of fake tensors.
torch.zeros((), requires_grad=True).backward()

SHARED = Path(__file__).parents[2] / "shared"
FORKING = ("benchmarks", "cli", "contract", "parallel", "planner")
"""Folders whose tests fork processes, besides those that import `run_ranks`."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than two seconds")
    config.addinivalue_line("markers", "drill: one of many cells of a test; left to `make drill` (pytest -m drill)")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that fork this process go first: it must have no threads then, and other tests leave some (servers, arrow).

    Several workers (`pytest -n 2`) take the files in this order too, so it holds for each of them; the one thread that
    these have waits for the name of the next test. Cells of a drill are
    left out, unless a test is named or asked for by a mark.
    """
    items.sort(key=lambda item: not _forks(item))
    if not config.getoption("markexpr") and not any("::" in word for word in config.args):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("drill")])
        items[:] = [item for item in items if not item.get_closest_marker("drill")]


def _forks(item: pytest.Item) -> bool:
    module = item.getparent(pytest.Module)
    return item.path.parent.name in FORKING or (module is not None and hasattr(module.obj, "run_ranks"))


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command sends the log to its own targets; what is left of them at the end of a test is closed."""
    yield
    ours = logging.getLogger("hanlin")
    for handler in list(ours.handlers):
        ours.removeHandler(handler)
        handler.close()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with vocabularies, data and golden cases of the originals."""
    if not SHARED.is_dir():
        pytest.skip("needs files of the originals in ../shared, which are not distributed with the project")
    return SHARED
