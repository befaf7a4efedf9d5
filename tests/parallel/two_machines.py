"""Two machines played by network namespaces, joined by a cable (Linux, root): each has its own interfaces and ports."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@contextmanager
def two_machines() -> Iterator[Sequence[str]]:
    """The names of two namespaces that reach each other by `ADDRESSES`, and nothing else.

    Skips the test where they may not be made.
    """
    if not shutil.which("ip"):
        pytest.skip("needs the program ip to make network namespaces")
    names = [f"hanlin-{os.getpid()}-{letter}" for letter in "ab"]  # other tests may run on this machine
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable-a", "netns", names[0], "type", "veth", "peer", "name", "cable-b", "netns", names[1])
        for name, address, cable in zip(names, ADDRESSES, ("cable-a", "cable-b"), strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
