"""A CPM-Bee record (a dict that holds its answer under "<ans>") as a tree of segments, and how segments relate.

The root, each key and each text is a segment; segments are numbered depth first, in the order of the dict.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from hanlin.core.errors import DataError

from .answers import ANSWER

ROOT = "<root>"
MOST_SEGMENTS = 4096
"""Of a record; its table of relations has the square of them."""
_KEPT_SEGMENTS = 64
"""Tables of so many are small, and the same trees come again and again."""

Path = tuple[str, ...]
Part = TypeVar("Part")


class Shuffler(Protocol):
    """`np.random.Generator`, `np.random.RandomState` or `random.Random`."""

    def shuffle(self, x: Any) -> Any: ...


class Segment(NamedTuple):
    """One key or text of a record; `answer` is a text below "<ans>"."""

    text: str
    depth: int
    role: Literal["key", "text", "answer"]
    path: Path


def segments(record: Any, rng: Shuffler | None = None) -> list[Segment]:
    """The segments of a record; `rng` shuffles each dict below "<ans>", the outer before the inner.

    Raises: DataError with the key of what is neither a text nor a dict, and for more segments than a model can relate.
    """
    if not isinstance(record, Mapping):
        raise DataError(f'a record is a dict such as {{"input": "...", "<ans>": "..."}}, found {_name(record)}')
    return _bounded([Segment(ROOT, 0, "key", ()), *islice(_walk(record, (), rng), MOST_SEGMENTS)])


def answer_paths(record: Any) -> list[Path]:
    """The keys that lead to each answer, whatever stands there.

    Raises: DataError when there is no place for an answer, and as `segments` for too many.
    """
    if not isinstance(record, Mapping):
        raise DataError(f'a record is a dict such as {{"input": "...", "<ans>": "..."}}, found {_name(record)}')
    if ANSWER not in record:
        close = difflib.get_close_matches(ANSWER, [str(key) for key in record], 1, 0.4)
        hint = f'; is "{close[0]}" meant?' if close else ""
        raise DataError(f'no "<ans>" at the top of the record; its keys are {", ".join(map(str, record))}{hint}')
    paths = _bounded(list(islice(_leaves(record[ANSWER], (ANSWER,)), MOST_SEGMENTS + 1)))
    if not paths:
        raise DataError('"<ans>" holds no place for an answer: give it a text, or a dict with texts')
    return paths


def with_value(record: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of the record with another value at `path`; the rest is shared."""
    key, *rest = path
    return {**record, key: with_value(record[key], tuple(rest), value) if rest else value}


def _bounded(found: list[Part]) -> list[Part]:
    """Raises: DataError."""
    if len(found) > MOST_SEGMENTS:
        raise DataError(
            f"the record has more than {MOST_SEGMENTS:,} keys and texts, each of which is related to each other one; "
            "divide it into several"
        )
    return found


def relation_table(depths: tuple[int, ...], max_depth: int) -> np.ndarray:
    """The relation of each segment to each other one: int32 `[segments * segments]`, read-only.

    depths: of all segments in depth-first order, which fixes the tree. With `up` and `down` the steps from the first
    to the lowest common ancestor and from there to the second, both at most max_depth - 1, the relation is
    up * max_depth + down + 1; 0 for a segment and itself. (1 is what the model takes for another sample.)
    """
    return (_kept_table if len(depths) <= _KEPT_SEGMENTS else _make_table)(depths, max_depth)


def _make_table(depths: tuple[int, ...], max_depth: int) -> np.ndarray:
    depth = np.array(depths, dtype=np.int32)
    shared = np.full((len(depth), len(depth)), -1, dtype=np.int32)
    for level in _ancestors(depth).T:
        shared += level[:, None] == level
    np.minimum(shared, depth, out=shared)  # depth of the lowest common ancestor
    up = np.minimum(depth[:, None] - shared, max_depth - 1)
    down = np.minimum(depth - shared, max_depth - 1)
    table = up * max_depth + down
    table += table > 0
    table.setflags(write=False)
    return table.ravel()


_kept_table = lru_cache(maxsize=1024)(_make_table)


def _ancestors(depth: np.ndarray) -> np.ndarray:
    """Per segment its ancestor (or itself) at each depth; below itself a number that no other segment has."""
    number = np.arange(len(depth))
    table = np.empty((len(depth), depth.max() + 1), dtype=np.int64)
    for level in range(table.shape[1]):
        newest = np.maximum.accumulate(np.where(depth == level, number, -1))
        table[:, level] = np.where(depth >= level, newest, -1 - number)
    return table


def _walk(value: Any, path: Path, rng: Shuffler | None) -> Iterator[Segment]:
    is_answer = path[:1] == (ANSWER,)
    if isinstance(value, str):
        yield Segment(value, len(path) + 1, "answer" if is_answer else "text", path)
        return
    if not isinstance(value, Mapping):
        raise DataError(f"{'.'.join(path)}: expected a text or a dict, found {_name(value)}")
    for key in _order(value, rng if is_answer else None):
        if not isinstance(key, str):
            raise DataError(f"{'.'.join((*path, str(key)))}: a key must be a text, found {_name(key)}")
        yield Segment(key, len(path) + 1, "key", (*path, key))
        yield from _walk(value[key], (*path, key), rng)


def _order(value: Mapping[str, Any], rng: Shuffler | None) -> list[str]:
    keys = list(value)
    if rng is None:
        return keys
    # kept: an array of numbers is shuffled, even a single one, so that the original's draws repeat (golden bee_encode).
    order = np.arange(len(keys))
    rng.shuffle(order)
    return [keys[i] for i in order]


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    if not isinstance(value, Mapping):
        yield path
        return
    for key, below in value.items():
        yield from _leaves(below, (*path, key))


def _name(value: Any) -> str:
    if isinstance(value, list):
        return 'a list; number its entries: {"<option_0>": "...", "<option_1>": "..."}'
    if isinstance(value, (bool, int, float)):
        return f'{value}; write it as a text: "{value}"'
    return "null" if value is None else f"{type(value).__name__} {value!r:.60}"
