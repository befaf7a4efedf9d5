"""What a way of scoring is: it says something about each record, then sums that up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hanlin.generate.engine import Engine
from hanlin.recipe.settings import GenerateSettings

Prediction = dict[str, Any]
"""One line of a predictions file: plain JSON values."""

Numbered = Iterable[tuple[int, Any]]
"""Records with their numbers in the data."""


@dataclass(frozen=True)
class Task:
    """predict: yields (number, row) in any order, each row independent of the others; summarise: rows -> metrics;
    reads_options: whether the rows depend on the settings of generation; compares_texts: whether a row has texts under
    "answer" and "gold".
    """

    predict: Callable[[Engine, Numbered, GenerateSettings, int], Iterator[tuple[int, Prediction]]]
    summarise: Callable[[Sequence[Prediction]], Mapping[str, float]]
    reads_options: bool = False
    compares_texts: bool = False
