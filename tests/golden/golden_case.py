"""A golden case as its check reads it: whatever it holds is offered, and what nobody asked for is told.

A case is a folder with a `case.json` and any of the files that its kind knows. A check compares all that is there and
skips what is not, so that cases of other sizes, with other flags or fewer files, need no check of their own.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, ItemsView, Iterator, ValuesView
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


class Reading(dict[str, Any]):
    """A JSON object, or the arrays of a file, that notes which of its keys were read.

    A key is read by `[]` or `get`; all of them by `items`, `values` or a comparison, none by going through the names.
    """

    def __init__(self, values: dict[str, Any], notes: Notes, place: str) -> None:
        super().__init__(values)
        self._notes, self._place = notes, place
        notes.keys.setdefault(place, set()).update(values)

    def __getitem__(self, key: str) -> Any:
        self._notes.read.setdefault(self._place, set()).add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:  # type: ignore[override]
        return self[key] if key in self else default  # noqa: SIM401 that would be this function

    def items(self) -> ItemsView[str, Any]:
        self._read_all()
        return super().items()

    def values(self) -> ValuesView[Any]:
        self._read_all()
        return super().values()

    def __eq__(self, other: object) -> bool:
        self._read_all()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def names(self, start: str) -> list[str]:
        """The keys that begin with `start`; asking for them reads none."""
        return [name for name in self if name.startswith(start)]

    def under(self, start: str) -> Reading:
        """Those keys without their beginning; what is read of them is read of all."""
        part = _Part({name.removeprefix(start): dict.__getitem__(self, name) for name in self.names(start)})
        part._whole, part._start = self, start
        return part

    def note_comparison(self, key: str) -> None:
        """A result of ours was compared with that number or array."""
        self._notes.compared.add(f"{self._place}{key}")

    def _read_all(self) -> None:
        self._notes.read.setdefault(self._place, set()).update(self)


class _Part(Reading):
    _whole: Reading
    _start: str

    def __init__(self, values: dict[str, Any]) -> None:
        dict.__init__(self, values)

    def __getitem__(self, key: str) -> Any:
        return self._whole[self._start + key]

    def under(self, start: str) -> Reading:
        return self._whole.under(self._start + start)

    def note_comparison(self, key: str) -> None:
        self._whole.note_comparison(self._start + key)

    def _read_all(self) -> None:
        for key in self:
            self[key]


class Notes:
    """keys: of every place, those that are there; read: those that somebody asked for; compared: place and key of what
    results of ours were compared with. Places of a list are one.
    """

    def __init__(self) -> None:
        self.compared: set[str] = set()
        self.keys: dict[str, set[str]] = {}
        self.read: dict[str, set[str]] = {}

    def unread(self) -> Iterator[str]:
        """Keys that nobody asked for, of the objects of which some key was; the others were taken whole, or not."""
        for place, read in self.read.items():
            yield from (f"{place}{key}" for key in sorted(self.keys[place] - read))


class Case:
    """The folder of a case; `case / "name"` is a file of it, which then counts as read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.parent = folder, folder.name, folder.parent
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text("utf-8"))
        self._notes = Notes()
        self._opened = {folder / "case.json"}
        self._set_aside: list[str] = []

    def __truediv__(self, name: str) -> Path:
        self._opened.add(self.folder / name)
        return self.folder / name

    def holds(self, *names: str) -> bool:
        return all((self.folder / name).exists() for name in names)

    def folders(self, pattern: str = "*") -> list[Path]:
        """The folders in the case by name, which count as read."""
        return [self / path.name for path in sorted(self.folder.glob(pattern)) if path.is_dir()]

    def weights(self, name: str = ".") -> Path:
        """A folder of weights with its configuration, the case itself by default; its files count as read."""
        for pattern in ("config.json", "*.bin", "*.safetensors", "*.index.json"):
            for path in (self.folder / name).glob(pattern):
                self._opened.add(path)
        return self.folder / name

    def one(self, pattern: str) -> Path | None:
        """The only file or folder of the pattern, None where there is none."""
        found = sorted(self.folder.glob(pattern))
        assert len(found) <= 1, f"{self.name}: several of {pattern}: {[path.name for path in found]}"
        return self / str(found[0].relative_to(self.folder)) if found else None

    def arrays(self, name: str = "expected.npz") -> Reading:
        """The arrays of a file by name; none where there is no file."""
        path, values = self / name, {}
        if path.is_file():
            with np.load(path) as file:
                values = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
        return Reading(values, self._notes, f"{name}: ")

    def json(self, name: str, default: Any = None) -> Any:
        """What a JSON file holds, `default` where there is no file."""
        path = self / name
        return self._reading(json.loads(path.read_text("utf-8")), f"{name}: ") if path.is_file() else default

    def data(self, name: str) -> Any:
        """A JSON file as it is, for what is given to the code under test."""
        return json.loads((self / name).read_text("utf-8"))

    def tolerance(self, *names: str, default: float) -> float:
        """The first of these tolerances that the case states."""
        stated = self.facts.get("tolerance", {})
        found = [stated[name] for name in names if name in stated] if isinstance(stated, dict) else [stated]
        numbers = [number for value in found if (number := re.search(r"\d+(\.\d+)?(e-?\d+)?", str(value)))]
        return float(numbers[0].group()) if numbers else default

    def flag(self, name: str, kind: type = str, default: Any = None) -> Any:
        """An argument of the original's command line; a bare flag is True, one that is not there `default`."""
        line = [str(part) for part in self.facts.get("argv", self.facts.get("cli", []))]
        given = [part.split("=", 1) for part in line]
        for place, part in enumerate(given):
            if part[0] == f"--{name}":
                value = part[1] if len(part) > 1 else "".join(line[place + 1 : place + 2])
                return value.lower() not in ("false", "0") if kind is bool else kind(value)
        return default

    def set_aside(self, pattern: str, why: str) -> None:
        """Say of files or keys why they are not compared; they are not told as unread then."""
        assert why
        self._set_aside.append(pattern)

    def compared(self, file: str) -> list[str]:
        """The arrays of a file with which results of ours were compared by `close` or `same`."""
        start = f"{file}: "
        return sorted(name.removeprefix(start) for name in self._notes.compared if name.startswith(start))

    def unread(self) -> list[str]:
        """Files and keys that the check has not looked at, in the words of its places."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        unopened = [
            str(path.relative_to(self.folder)) for path in files if not self._opened.intersection((path, *path.parents))
        ]
        found = [*unopened, *self._notes.unread()]
        return [name for name in found if not any(re.fullmatch(pattern, name) for pattern in self._set_aside)]

    def was_read(self) -> bool:
        """Whether anything but `case.json` was there to be compared, or the check lives of that alone."""
        others = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "case.json"]
        return not others or len(self._opened) > 1

    def _reading(self, value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return Reading(
                {key: self._reading(one, f"{place}{key}.") for key, one in value.items()}, self._notes, place
            )
        if isinstance(value, list):
            return [self._reading(one, f"{place.removesuffix('.')}[].") for one in value]
        return value


def check_of(case: Case) -> Callable[[Case, Path], None]:
    """The check of the case's kind; without one the test is skipped."""
    kind = kind_of(case)
    if kind is None:
        pytest.skip(f"no check for the kind of {case.name}")
    return importlib.import_module(f"check_{kind}").check


def kind_of(case: Case) -> str | None:
    """The longest kind with which the folder's name begins, or the name that it was made under."""
    kinds = [path.stem.removeprefix("check_") for path in Path(__file__).parent.glob("check_*.py")]
    for name in (case.name, str(case.facts.get("case", ""))):
        if found := [kind for kind in kinds if name.startswith(kind)]:
            return max(found, key=len)
    return None


def needed(path: Path) -> Path:
    """A vocabulary or tokenizer that may not be distributed; without it the test is skipped."""
    if not path.exists():
        pytest.skip(f"{path.name} is not at {path.parent}")
    return path


def close(name: str, ours: Any, expected: Reading, atol: float, rtol: float = 1e-4, where: Any = None) -> bool:
    """Compare with the array of that name if the case has one, only `where` that is given.

    Returns whether there was one.
    """
    if name not in expected:
        return False
    theirs = torch.as_tensor(expected[name])
    expected.note_comparison(name)
    ours = ours.detach() if isinstance(ours, torch.Tensor) else torch.from_numpy(np.asarray(ours))
    if where is not None:
        ours, theirs = ours[where], theirs[where]
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    ours, theirs = ours.double(), theirs.double()
    difference = (ours - theirs).abs().masked_fill(ours == theirs, 0.0)  # two infinities are equal
    assert bool(((difference <= atol + rtol * theirs.abs()) | (ours == theirs)).all()), (
        f"{name}: differs by up to {float(difference.max()):.3g} (atol {atol:.3g})"
    )
    return True


def same(name: str, ours: Any, expected: Reading, where: Any = None) -> bool:
    """The same for integers and truth values, which must be equal."""
    return close(name, ours, expected, 0.0, 0.0, where)
