"""Additions to fused linears: one of theirs is several of ours, and several of ours are one of theirs.

In, each part has the A of the fused linear and its own rows of B. Out, the A's of the parts stand below each other and
B has a block for each, so that the rank is the sum of theirs; parts with the same A share it. Both are exact, and what
goes out comes back as it was: a column of B that is zero in one part and not in another was never that part's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hanlin.core.errors import CheckpointError
from hanlin.formats.rules import Drop, Rule, Transposed, find_moves

if TYPE_CHECKING:
    import torch

_WEIGHT = ".weight"


class OtherShapeError(CheckpointError):
    """An addition to a linear that is known by its name, and has other rows than the configuration says."""


@dataclass(frozen=True)
class LowRank:
    """An addition to one linear: `outer @ inner`.

    inner: A `[rank, in]`; outer: B `[out, rank]`; theirs: what the file calls the linear that it was trained on;
    stands_transposed: whether the weight of that linear is `[in, out]` there (A and B are as ever); magnitude: the
    lengths `[out]` that the rows of weight and addition get (DoRA), None where they stay as they are.
    """

    inner: torch.Tensor
    outer: torch.Tensor
    theirs: str
    stands_transposed: bool = False
    magnitude: torch.Tensor | None = None


def cut(pair: LowRank, layouts: Iterable[Sequence[Rule]]) -> dict[str, LowRank]:
    """The additions to those linears of ours that a linear of theirs holds, by our names; by theirs where none of the
    layouts knows it.

    Raises: OtherShapeError where B has other rows than the linear.
    """
    parts = cut_rows(pair.theirs, _with_column(pair.outer, pair.magnitude), layouts)
    if not parts:
        return {pair.theirs: pair}
    own = _own(pair, list(parts.values()))
    return {name: replace(pair, **part) for name, part in zip(parts, own, strict=True) if part}


def cut_rows(theirs: str, rows: torch.Tensor, layouts: Iterable[Sequence[Rule]]) -> dict[str, torch.Tensor]:
    """What `[out, n]`, of which each row belongs to an output of a linear of theirs, is of ours, by our names; {} where
    none of the layouts knows it.

    Raises: OtherShapeError where the linear has other outputs.
    """
    for rules in layouts:
        for move in find_moves(rules, [f"{theirs}{_WEIGHT}"], "to_ours"):
            if move.targets:
                try:
                    parts = move.run((rows.t() if isinstance(move.rule, Transposed) else rows,))
                except CheckpointError as error:
                    raise OtherShapeError(str(error)) from None
                return dict(zip((target.removesuffix(_WEIGHT) for target in move.targets), parts, strict=True))
    return {}


def _own(pair: LowRank, rows: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Each part's A, B and magnitude without the columns that are others'; nothing for a part that has none of its own.

    rows: of B, with the magnitude as its last column if there is one.
    """
    magnitudes = [{} if pair.magnitude is None else {"magnitude": part[:, -1].contiguous()} for part in rows]
    rows = rows if pair.magnitude is None else [part[:, :-1] for part in rows]
    used = [(part != 0).any(0) for part in rows]
    of_any = sum(one.int() for one in used) > 0
    found: list[dict[str, torch.Tensor]] = []
    for part, own, more in zip(rows, used, magnitudes, strict=True):
        kept = own | ~of_any  # a column that is zero everywhere has not been trained yet
        if kept.all() or (more and not kept.any()):
            found.append({"inner": pair.inner, "outer": part.contiguous(), **more})
        elif kept.any():
            found.append({"inner": pair.inner[kept], "outer": part[:, kept].contiguous(), **more})
        else:
            found.append({})
    return found


def _with_column(outer: torch.Tensor, magnitude: torch.Tensor | None) -> torch.Tensor:
    import torch

    return outer if magnitude is None else torch.cat((outer, magnitude.to(outer.dtype)[:, None]), 1)


def join(pairs: Mapping[str, LowRank], num_rows: Mapping[str, int], rules: Sequence[Rule]) -> list[LowRank]:
    """The additions to their linears that are those to ours.

    pairs: by our names; num_rows: outputs of every linear of the model, by our names. An addition to what is no linear
    of theirs alone, or no part of one, is left out.
    Raises: CheckpointError where a part of one of theirs has a magnitude, and another one has none.
    """
    found = []
    for move in find_moves(rules, [f"{name}{_WEIGHT}" for name in num_rows], "to_theirs"):
        names = [source.removesuffix(_WEIGHT) for source in move.sources]
        if len(move.targets) == 1 and any(name in pairs for name in names):
            turned = isinstance(move.rule, Transposed)
            parts = [pairs.get(name) for name in names]
            inner, blocks = _stacked(parts, [num_rows[name] for name in names])
            lengths = _magnitudes(parts, names)
            (outer,) = move.run(tuple(map(_with_column, blocks, lengths)))
            outer = (outer.t() if turned else outer).contiguous()
            theirs, magnitude = move.targets[0].removesuffix(_WEIGHT), None
            if lengths[0] is not None:
                outer, magnitude = outer[:, :-1].contiguous(), outer[:, -1].contiguous()
            found.append(LowRank(inner, outer, theirs, turned, magnitude))
    return found


def parts_of_linears(names: Iterable[str], rules: Sequence[Rule]) -> set[str]:
    """Those of our linears, by name, that are one of theirs or a part of one."""
    moves = find_moves(rules, [f"{name}{_WEIGHT}" for name in names], "to_theirs")
    return {source.removesuffix(_WEIGHT) for move in moves if len(move.targets) == 1 for source in move.sources}


def _magnitudes(parts: Sequence[LowRank | None], names: Sequence[str]) -> list[torch.Tensor | None]:
    """Those of all parts of one linear of theirs, or None for each."""
    lengths = [None if part is None else part.magnitude for part in parts]
    without = [name for name, one in zip(names, lengths, strict=True) if one is None]
    if 0 < len(without) < len(names):
        raise CheckpointError(
            f"a DoRA of some of {', '.join(names)}, which are one linear there and all have magnitudes or none: "
            f"{', '.join(without)} would need one; work it into the base: `hanlin convert BASE NEW_FOLDER --merge "
            "ADAPTER`"
        )
    return lengths


def _stacked(parts: Sequence[LowRank | None], num_rows: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A of all parts, each once, and every part's B with its columns where its A stands; None: zeros."""
    import torch

    trimmed = [None if part is None else _without_zeros(part) for part in parts]
    inners: list[torch.Tensor] = []
    starts = {}
    for number, part in enumerate(trimmed):
        if part is not None:
            same = next((index for index, one in enumerate(inners) if one.equal(part.inner)), len(inners))
            inners += [part.inner] if same == len(inners) else []
            starts[number] = sum(map(len, inners[:same]))
    blocks = []
    for number, part in enumerate(trimmed):
        block = inners[0].new_zeros(num_rows[number], sum(map(len, inners)))
        if part is not None:
            block[:, starts[number] : starts[number] + len(part.inner)] = part.outer
        blocks.append(block)
    return torch.cat(inners), blocks


def _without_zeros(pair: LowRank) -> LowRank:
    """Without the ranks that are zero in A and B, which fill up what was read with a smaller rank than others."""
    kept = (pair.inner != 0).any(1) | (pair.outer != 0).any(0)
    if kept.all() or not kept.any():
        return pair
    return replace(pair, inner=pair.inner[kept], outer=pair.outer[:, kept])


def their_modules(rules: Sequence[Rule], names: Iterable[str]) -> set[str]:
    """What a layout calls all modules that have one of these weights of ours, or one that is a copy of one."""
    moves = find_moves(rules, names, "to_theirs")
    dropped = [theirs for rule in rules if isinstance(rule, Drop) for theirs in rule.theirs if "{" not in theirs]
    written = [target for move in moves for target in move.targets]
    return {name.removesuffix(_WEIGHT) for name in [*written, *dropped] if name.endswith(_WEIGHT)}


def shortest_endings(wanted: Collection[str], known: Collection[str]) -> list[str]:
    """The fewest last parts of names (`q_proj`, `mlp.c_proj`, or all of a name) that name the wanted ones of all that
    are known, and no other.
    """
    others, found = [name for name in known if name not in wanted], set()
    for name in sorted(wanted):
        parts = name.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found.add(next(ending for ending in endings if not any(has_ending(other, ending) for other in others)))
    return sorted(found)


def has_ending(name: str, ending: str) -> bool:
    """Whether a name of modules ends with another, part for part."""
    return name == ending or name.endswith(f".{ending}")
