"""Statistics of weights and gradients as a table to read and as values for a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hanlin.parallel.parameter_statistics import ParameterStatistics, Statistics

_COLUMNS = ("max", "min", "std", "mean")


def as_table(found: Mapping[str, ParameterStatistics]) -> str:
    """One line a weight: its numbers, then those of its gradient ("-": it has none)."""
    head = ["weight", *_COLUMNS, *(f"gradient {name}" for name in _COLUMNS)]
    rows = [[name, *_cells(one.weight), *_cells(one.gradient)] for name, one in found.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    )


def as_values(found: Mapping[str, ParameterStatistics]) -> dict[str, Any]:
    """`weights` and `gradients`, each by name; a number that is not finite is None."""
    return {
        "weights": {name: _values(one.weight) for name, one in found.items()},
        "gradients": {name: _values(one.gradient) for name, one in found.items() if one.gradient is not None},
    }


def _cells(statistics: Statistics | None) -> list[str]:
    return ["-"] * len(_COLUMNS) if statistics is None else [f"{getattr(statistics, name):.4g}" for name in _COLUMNS]


def _values(statistics: Statistics) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(statistics).items()}
