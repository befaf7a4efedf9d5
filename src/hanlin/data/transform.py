"""A source seen through a mapping or a script: a raw row becomes a record.

A mapping names, for each key of the record, where its value comes from: `{"标题": "$title", "<ans>": "$text"}`. A value
that begins with "$" names a key of the raw row ("$a.b" goes deeper), any other value is taken as it is; a key "a.b" is
the key b of a. `*` stands for any key: `{"*": "$*"}` copies all keys, `{"options.*": "$choices.*"}` those of choices.
`{"$join": ["$a", "：", "$b?"]}` makes one text of several; a key with a "?" behind it may be missing.
A script is a Python file with `transform(data, num_sample, r)`, which returns the record.
Both (without `$join`) are the forms of CPM-Bee's lists of data sets (see golden case bee_dataset and docs/data.md).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError, noting
from hanlin.core.extensions import import_file
from hanlin.data.sources import Records, open_records
from hanlin.recipe.settings import DataSettings

__all__ = ["Transformed", "check_mapping", "open_transformed", "transform"]

JOIN = "$join"
Keys = tuple[str, ...]
Transform = Callable[[Any, int, random.Random], Any]
"""Raw row, number of worked examples, random numbers -> record."""


def open_transformed(path: Path, settings: DataSettings) -> Records:
    """The records of a file or folder, through `data.transform` where there is one.

    Raises: DataError.
    """
    source, given = open_records(path), settings.transform
    if isinstance(given, Path):
        return Scripted(source, given)
    return Transformed(source, given) if given else source


def transform(mapping: Mapping[str, Any], row: Any) -> Any:
    """The record that `mapping` makes of a raw row; nested mappings make nested records.

    Raises: DataError naming the key that the row lacks.
    """
    record: dict[str, Any] = {}
    for target, wanted in _leaves(mapping):
        for keys, value in _values(target, wanted, row):
            _put(record, keys, value)
    return record


def check_mapping(mapping: Mapping[str, Any]) -> None:
    """Raises: DataError for stars on one side that the other does not have, and for a `$join` that joins no texts."""
    for target, wanted in _leaves(mapping):
        if _is_join(wanted):
            _check_join(".".join(target), wanted)
        source = _source(wanted) or ()
        if target.count("*") != source.count("*"):
            raise DataError(
                f"{'.'.join(target)!r}: {wanted!r} must have as many * on both sides; found {target.count('*')} in the "
                f"key and {source.count('*')} in the value"
            )


@dataclass(frozen=True)
class Transformed:
    """A source whose records are made by a mapping."""

    source: Records
    mapping: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_mapping(self.mapping)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Any:
        return transform(self.mapping, self.source[number])

    def where(self, number: int) -> str:
        return self.source.where(number)

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} through {sorted(self.mapping.items())!r}"


@dataclass(frozen=True)
class Scripted:
    """A source whose records are made by a script; its random numbers are those of the row's number."""

    source: Records
    script: Path

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Any:
        row, make = self.source[number], _load(self.script)
        with noting(lambda: f"{self.script} on {self.where(number)}"):
            # differs: the original calls it at each look at a row, with other random numbers and worked examples.
            return make(row, 0, random.Random(number))

    def where(self, number: int) -> str:
        return self.source.where(number)

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} through {hashlib.sha256(self.script.read_bytes()).hexdigest()}"


@lru_cache
def _load(script: Path) -> Transform:
    """Raises: DataError, ConfigError."""
    if not script.is_file():
        raise DataError(f"there is no {script}; name a Python file with transform(data, num_sample, r)")
    if script.suffix != ".py":
        raise DataError(f"{script}: is no Python file; its name must end with .py")
    module = import_file(script)
    if not callable(getattr(module, "transform", None)):
        raise DataError(f"{script}: has no function transform(data, num_sample, r)")
    return module.transform


def _leaves(mapping: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Each key of the record, from its top, with what is wanted there."""
    for key, wanted in mapping.items():
        keys = (*above, *str(key).split("."))
        if isinstance(wanted, Mapping) and wanted and not _is_join(wanted):
            yield from _leaves(wanted, keys)
        else:
            yield keys, wanted


def _source(wanted: Any) -> Keys | None:
    """The keys of the raw row that a value names; None for one that is taken as it is."""
    return tuple(wanted[1:].split(".")) if isinstance(wanted, str) and wanted.startswith("$") else None


def _values(target: Keys, wanted: Any, row: Any) -> Iterator[tuple[Keys, Any]]:
    """Keys of the record and their values; several where there are stars."""
    if _is_join(wanted):
        yield target, "".join(_joined(piece, row) for piece in wanted[JOIN])
        return
    source = _source(wanted)
    if source is None:
        yield target, wanted
        return
    for stars, value in _matches(source, row, wanted):
        names = iter(stars)
        yield tuple(next(names) if key == "*" else key for key in target), value


def _matches(source: Sequence[str], value: Any, wanted: str) -> Iterator[tuple[Keys, Any]]:
    """What the stars stood for, and the value there."""
    if not source:
        yield (), value
        return
    key, *rest = source
    if not isinstance(value, Mapping) or (key != "*" and key not in value):
        has = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise DataError(f"data.transform asks for {wanted!r}, but the row has no key {key!r} (it has: {has})")
    for name in list(value) if key == "*" else [key]:
        for stars, found in _matches(rest, value[name], wanted):
            yield ((name, *stars) if key == "*" else stars), found


def _is_join(wanted: Any) -> bool:
    return isinstance(wanted, Mapping) and JOIN in wanted


def _check_join(target: str, wanted: Mapping[str, Any]) -> None:
    pieces = wanted[JOIN]
    if len(wanted) > 1 or not isinstance(pieces, list) or not pieces:
        raise DataError(f"{target!r}: {JOIN} stands alone and lists what is joined: {{{JOIN}: [$a, ' ', $b]}}")
    if odd := [piece for piece in pieces if not isinstance(piece, str) or "*" in (_source(piece) or ())]:
        raise DataError(f"{target!r}: {JOIN} joins texts and the texts under keys, not {odd[0]!r:.40}")


def _joined(piece: str, row: Any) -> str:
    """A text of a `$join`, or that under the key that it names; nothing where a key with a "?" is missing.

    Raises: DataError.
    """
    source = _source(piece.removesuffix("?") if piece.startswith("$") else piece)
    if source is None:
        return piece
    try:
        [(_, value)] = _matches(source, row, piece)
    except DataError:
        if piece.endswith("?"):
            return ""
        raise
    if value is None and piece.endswith("?"):
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"data.transform joins {piece!r}, which is no text but {value!r:.40}")
    return str(value)


def _put(record: dict[str, Any], keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        inner = record.get(key, {})
        if not isinstance(inner, dict):
            raise DataError(f"data.transform asks for {'.'.join(keys)!r}, but {key!r} has a value already")
        record[key] = dict(inner)  # it may be the raw row's own
        record = record[key]
    record[keys[-1]] = value
