"""Results by the weights and data that they are for: each pair has a folder of its own, and no other one replaces it.

WEIGHTS-xxxxxxxx/     about.json (which weights, which data), metrics.json, predictions/TASK.jsonl
metrics.json, predictions    links to those of the newest evaluation
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hanlin.core.files import private_name, replace_json

__all__ = [
    "METRICS",
    "NO_FILES",
    "PREDICTIONS",
    "About",
    "EvaluatedFiles",
    "Identity",
    "all_predictions",
    "open_results",
]

PREDICTIONS, METRICS, ABOUT = "predictions", "metrics.json", "about.json"


_NO_NAME = re.compile(r"[^\w.-]")


@dataclass(frozen=True)
class EvaluatedFiles:
    """What the weights (none: fresh ones) and the data that are evaluated came from, for people."""

    weights: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


NO_FILES = EvaluatedFiles()


@dataclass(frozen=True)
class Identity:
    """What was evaluated, or on what: the paths it came from, and a sha256 over all that decides the numbers."""

    files: tuple[str, ...]
    sha256: str

    @classmethod
    def of(cls, files: tuple[str, ...], facts: str) -> Identity:
        return cls(files, hashlib.sha256(facts.encode()).hexdigest())


@dataclass(frozen=True)
class About:
    """Which weights and data results are for."""

    weights: Identity
    data: Identity

    @property
    def name(self) -> str:
        """Of the folder: the last part of the weights' path, for people, and a hash of both identities."""
        label = Path(self.weights.files[-1]).name if self.weights.files else "fresh"
        digest = hashlib.sha256(f"{self.weights.sha256} {self.data.sha256}".encode()).hexdigest()
        return f"{_NO_NAME.sub('_', label)[:64]}-{digest[:8]}"

    def __str__(self) -> str:
        shown = {"weights": self.weights, "data": self.data}
        return " ".join(f"{name}={one.sha256[:8]} ({_listed(one.files)})" for name, one in shown.items())


def open_results(folder: Path, about: About) -> Path:
    """The folder for the results of these weights and data, inside `folder`, whose links lead to it from now on."""
    own = folder / about.name
    replace_json(own / ABOUT, asdict(about))
    (own / PREDICTIONS).mkdir(exist_ok=True)
    for name in (PREDICTIONS, METRICS):
        _link(folder / name, Path(about.name) / name)
    return own


def all_predictions(own: Path, task: str) -> Iterator[Path]:
    """The files with predictions of a task for any weights and data, finished and unfinished; own ones first."""
    folders = sorted((path for path in own.parent.glob(f"*/{PREDICTIONS}")), key=lambda path: path.parent != own)
    for folder in folders:
        yield from (folder / f"{task}.jsonl", folder / f"{task}.jsonl.part")


def _link(path: Path, target: Path) -> None:
    """Let a link lead to another place, in one step; where links cannot be made there is none."""
    if path.exists() and not path.is_symlink():  # written before results lay apart
        path.rename(path.with_name(f"{path.stem}.before{path.suffix}"))
    private = private_name(path)
    with suppress(OSError, NotImplementedError):
        os.symlink(target, private)
        private.replace(path)


def _listed(files: Sequence[str]) -> str:
    return ", ".join(files) or "none"
