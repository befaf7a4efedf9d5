"""The catalogue of published numbers: what was printed where, and the recipes that measure it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from hanlin.core.errors import ConfigError
from hanlin.core.language import Language
from hanlin.recipe.reading import nearest

__all__ = ["PreparedFile", "Published", "PublishedRun", "find_published", "read_published"]

_FILE = Path(__file__).with_name("published.yaml")
_SHARES = ("accuracy", "exact_match")
"""Metrics that are from 0 to 1 here, and often printed as percentages."""


@dataclass(frozen=True)
class PreparedFile:
    """A raw file that is brought into another form; form: of `hanlin prepare --from`."""

    form: str
    source: str
    target: str


@dataclass(frozen=True)
class PublishedRun:
    """recipe: its name among those that come with hanlin; changes: {run} in them is the run before."""

    recipe: str
    changes: Mapping[str, Any]
    is_trained: bool


@dataclass(frozen=True)
class Published:
    """what: by language; source: who printed the numbers; weights: which they belong to; numbers: by task/metric of the
    last run, as printed; scored: the part of the data that they are of; suite: words of `hanlin suite`, its name first,
    which then takes the place of runs.
    """

    name: str
    what: Mapping[Language, str]
    source: str
    weights: str
    runs: Sequence[PublishedRun]
    numbers: Mapping[str, float]
    prepared: Sequence[PreparedFile] = ()
    scored: Literal["dev", "test"] = "test"
    suite: Sequence[str] = ()

    def as_printed(self, metric: str, value: float) -> float:
        """A value of ours in the unit of the printed one."""
        is_share = bool(self.suite) or metric.rpartition("/")[2] in _SHARES
        is_percentage = is_share and self.numbers[metric] > 1
        return 100 * value if is_percentage else value


def read_published() -> dict[str, Published]:
    """All of them, by name, in the order of the catalogue."""
    catalogue = yaml.safe_load(_FILE.read_text("utf-8"))
    return {
        name: Published(
            name,
            values["what"],
            catalogue["sources"][values["source"]],
            values["weights"],
            [PublishedRun(run["recipe"], run["changes"], run.get("train", True)) for run in values.get("runs", ())],
            values["published"],
            [PreparedFile(one["from"], one["source"], one["target"]) for one in values.get("prepare", ())],
            values.get("scored", "test"),
            values.get("suite", ()),
        )
        for name, values in catalogue["numbers"].items()
    }


def find_published(name: str) -> Published:
    """Raises: ConfigError with the nearest name."""
    known = read_published()
    if name not in known:
        near = nearest(name, known)
        raise ConfigError(
            f"nothing published is called {name}{near if 'did you mean' in near else '; `hanlin reproduce` lists all'}"
        )
    return known[name]
