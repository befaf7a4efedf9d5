"""How names and tensors of another layout become ours, and ours become theirs: one table for both directions.

A rule relates a group of their names to a group of ours. Names may hold placeholders such as `{i}`, each standing for a
number; names belong together when their numbers agree. A rule that cuts one tensor in three (`theirs` one name, `ours`
three) needs nothing more than the two functions of `Rule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol

from hanlin.core.errors import CheckpointError
from hanlin.formats.lazy import is_copy

if TYPE_CHECKING:
    import torch

Direction = Literal["to_ours", "to_theirs"]
Tensors = tuple["torch.Tensor", ...]


class Rule(Protocol):
    """Tensors come and go in the order of the names."""

    @property
    def theirs(self) -> tuple[str, ...]: ...

    @property
    def ours(self) -> tuple[str, ...]: ...

    def to_ours(self, tensors: Tensors) -> Tensors: ...

    def to_theirs(self, tensors: Tensors) -> Tensors: ...


class Rename:
    """The same tensor under another name."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs = (theirs,)
        self.ours = (ours,)

    def to_ours(self, tensors: Tensors) -> Tensors:
        return tensors

    def to_theirs(self, tensors: Tensors) -> Tensors:
        return tensors


class Drop:
    """A tensor of theirs that we do not keep, and do not write; `same_as`: their name whose copy it must be."""

    def __init__(self, theirs: str, same_as: str | None = None) -> None:
        self.theirs = (theirs,)
        self.ours = ()
        self.same_as = same_as

    def to_ours(self, tensors: Tensors) -> Tensors:
        return ()

    def to_theirs(self, tensors: Tensors) -> Tensors:
        raise AssertionError("what is dropped is never written")


class Copies:
    """Several tensors of theirs that must be equal are one of ours."""

    def __init__(self, theirs: Sequence[str], ours: str) -> None:
        self.theirs = tuple(theirs)
        self.ours = (ours,)

    def to_ours(self, tensors: Tensors) -> Tensors:
        for name, copy in zip(self.theirs[1:], tensors[1:], strict=True):
            if not copy.is_meta and not is_copy(copy, tensors[0]):
                raise CheckpointError(f"{name} must be a copy of {self.theirs[0]} in this family, but differs")
        return tensors[:1]

    def to_theirs(self, tensors: Tensors) -> Tensors:
        return tensors * len(self.theirs)


class SplitRows:
    """Blocks of rows of one tensor of theirs are several of ours; sizes: rows of each, None = equal parts."""

    def __init__(self, theirs: str, ours: Sequence[str], sizes: Sequence[int] | None = None) -> None:
        self.theirs = (theirs,)
        self.ours = tuple(ours)
        self._sizes = None if sizes is None else list(sizes)

    def to_ours(self, tensors: Tensors) -> Tensors:
        (fused,) = tensors
        if self._sizes is None:
            return fused.chunk(len(self.ours))
        if sum(self._sizes) != len(fused):
            raise CheckpointError(
                f"{self.theirs[0]}: found {list(fused.shape)}, expected {' + '.join(map(str, self._sizes))} rows, for "
                f"{', '.join(self.ours)}; compare the config beside the weights"
            )
        return fused.split(self._sizes)

    def to_theirs(self, tensors: Tensors) -> Tensors:
        import torch

        return (torch.cat(tensors),)


class SplitHeads:
    """The rows of one tensor of theirs go head by head, `head_dim` rows for each of our tensors in turn."""

    def __init__(self, theirs: str, ours: Sequence[str], head_dim: int) -> None:
        self.theirs = (theirs,)
        self.ours = tuple(ours)
        self._head_dim = head_dim

    def to_ours(self, tensors: Tensors) -> Tensors:
        (fused,) = tensors
        if len(fused) % (len(self.ours) * self._head_dim):
            raise CheckpointError(
                f"{self.theirs[0]}: {len(fused)} rows are no multiple of {len(self.ours)} x {self._head_dim}"
            )
        heads = fused.unflatten(0, (-1, len(self.ours), self._head_dim))
        return tuple(part.flatten(0, 1) for part in heads.unbind(1))

    def to_theirs(self, tensors: Tensors) -> Tensors:
        import torch

        heads = [tensor.unflatten(0, (-1, self._head_dim)) for tensor in tensors]
        return (torch.stack(heads, dim=1).flatten(0, 2),)


class FirstRows:
    """The first rows of a tensor of theirs, which may have more of them that mean nothing; we write ours alone."""

    def __init__(self, theirs: str, ours: str, count: int) -> None:
        self.theirs = (theirs,)
        self.ours = (ours,)
        self._count = count

    def to_ours(self, tensors: Tensors) -> Tensors:
        return (tensors[0][: self._count],)

    def to_theirs(self, tensors: Tensors) -> Tensors:
        return tensors


class Transposed:
    """A rule for matrices that stand the other way round in their file, `[in, out]`."""

    def __init__(self, rule: Rule) -> None:
        self.theirs, self.ours = rule.theirs, rule.ours
        self._rule = rule

    def to_ours(self, tensors: Tensors) -> Tensors:
        return self._rule.to_ours(tuple(tensor.t() for tensor in tensors))

    def to_theirs(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.t().contiguous() for tensor in self._rule.to_theirs(tensors))


@dataclass(frozen=True)
class Move:
    """One use of a rule: these tensors become those."""

    rule: Rule
    direction: Direction
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def run(self, tensors: Tensors) -> Tensors:
        return self.rule.to_ours(tensors) if self.direction == "to_ours" else self.rule.to_theirs(tensors)


def find_moves(rules: Iterable[Rule], names: Iterable[str], direction: Direction) -> list[Move]:
    """Every complete use of the rules on these names."""
    names = list(names)
    return [move for rule in rules for move in _moves_of(rule, names, direction)]


def rename(rules: Iterable[Rule], name: str, direction: Direction) -> str | None:
    """The other side's name of one tensor that is only renamed; None where no such rule knows it."""
    renames = [rule for rule in rules if isinstance(rule, Rename)]
    moves = find_moves(renames, [name], direction)
    return moves[0].targets[0] if moves else None


def _moves_of(rule: Rule, names: Sequence[str], direction: Direction) -> Iterable[Move]:
    sources, targets = (rule.theirs, rule.ours) if direction == "to_ours" else (rule.ours, rule.theirs)
    groups: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for name in names:
        for pattern in sources:
            if match := _compiled(pattern).fullmatch(name):
                groups.setdefault(tuple(match.groupdict().items()), {})[pattern] = name
    for numbers, found in groups.items():
        if len(found) == len(sources):
            filled = tuple(target.format(**dict(numbers)) for target in targets)
            yield Move(rule, direction, tuple(found[pattern] for pattern in sources), filled)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    literal = re.split(r"(\{\w+\})", pattern)
    return re.compile(
        "".join(rf"(?P<{part[1:-1]}>\d+)" if part.startswith("{") else re.escape(part) for part in literal)
    )
