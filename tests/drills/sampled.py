"""Tests of many cells: which of them `make test` runs, while `make drill` runs the others too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def sampled(cells: Sequence[Any], chosen: Collection[Any]) -> list[Any]:
    """The cells as parameters; those that are not among the chosen ones have the mark `drill` (tests/conftest.py)."""
    assert all(cell in cells for cell in chosen), [cell for cell in chosen if cell not in cells]
    return [
        pytest.param(*(cell if isinstance(cell, tuple) else (cell,)), marks=() if cell in chosen else pytest.mark.drill)
        for cell in cells
    ]
