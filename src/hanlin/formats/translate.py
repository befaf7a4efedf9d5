"""Tensors under the names of the other side, each made when it is asked for.

Every name of theirs is used or dropped by a rule and every parameter of ours is filled, exactly once; anything else is
an error that lists both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.format import BASE, FamilyFacts, Format
from hanlin.formats.lazy import Lazy, forget, is_copy, meta_of
from hanlin.formats.rules import Copies, Drop, Move, Rename, Rule, find_moves, rename
from hanlin.formats.source import Source, with_nearest

if TYPE_CHECKING:
    import torch

_SHOWN = 8  # tensors in a message
_PACKED_ENDINGS = (
    ".SCB",
    ".weight_format",
    ".absmax",
    ".quant_map",
    ".qweight",
    ".qzeros",
    ".g_idx",
    "_scale",
    ".scales",
)
_PACKED = "Another program has quantised these weights, in a form that is not read here; get the fp16 or bf16 ones."


@dataclass(frozen=True)
class Translated(Lazy):
    """Tensors under the names of the other side, each made when it is asked for."""

    tensors: Mapping[str, torch.Tensor]
    moves: dict[str, Move]

    def __getitem__(self, name: str) -> torch.Tensor:
        move = self.moves[name]
        return move.run(tuple(self.tensors[source] for source in move.sources))[move.targets.index(name)]

    def __contains__(self, name: object) -> bool:
        return name in self.moves

    def meta(self, name: str) -> torch.Tensor:
        move = self.moves[name]
        return move.run(tuple(meta_of(self.tensors, source) for source in move.sources))[move.targets.index(name)]

    def forget(self, name: str) -> None:
        for source in self.moves[name].sources:
            forget(self.tensors, source)

    def twin(self, name: str) -> str:
        move = self.moves[name]
        return move.targets[0] if isinstance(move.rule, Copies) else name

    def __iter__(self) -> Iterator[str]:
        return iter(self.moves)

    def __len__(self) -> int:
        return len(self.moves)


def to_ours(source: Source, family: FamilyFacts, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Translated:
    """The source's tensors under our names, checked against the parameters' names and shapes."""
    rules: Sequence[Rule] = [Rename(name, name) for name in shapes]
    if source.format != BASE:
        rules = family.formats[source.format].rules(config)
    moves = find_moves(rules, source.weights, "to_ours")
    translated = Translated(source.weights, {target: move for move in moves for target in move.targets})
    _check_names(source, rules, moves, translated, shapes)
    _check_shapes(source, translated, shapes)
    if source.format != BASE and not getattr(config, "bits", 0):
        _refuse_packed(source, translated, shapes)
    _check_copies(source, moves)
    return translated


def to_theirs(form: Format, config: Any, ours: Mapping[str, torch.Tensor]) -> Translated:
    moves = find_moves(form.rules(config), ours, "to_theirs")
    assert sum(len(move.sources) for move in moves) == len(ours), "the rules must know every parameter"
    return Translated(ours, {target: move for move in moves for target in move.targets})


def shapes_of(family: FamilyFacts, config: Any) -> dict[str, tuple[int, ...]]:
    import torch

    with torch.device("meta"):
        model = family.model()(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _check_names(
    source: Source, rules: Sequence[Rule], moves: Sequence[Move], translated: Translated, shapes: Mapping[str, object]
) -> None:
    useful = {name for move in moves if not move.targets or set(move.targets) & set(shapes) for name in move.sources}
    surplus = [name for name in source.weights if name not in useful]
    lacking = [name for name in shapes if name not in translated.moves]
    missing = list(dict.fromkeys(_their_name(rules, name) for name in lacking))
    if not surplus and not missing:
        return
    lines = [f"{source.path}: the tensors do not fit the model ({source.format} layout)"]
    if missing:
        lines.append(f"  missing, {len(missing)}: {with_nearest(missing, surplus)}")
    if surplus:
        lines.append(f"  surplus, {len(surplus)}: {with_nearest(surplus, missing)}")
    lines.append("  Compare the config beside the weights with the file; `hanlin inspect` shows what it holds.")
    if any(name.endswith(_PACKED_ENDINGS) for name in surplus):
        lines.append(f"  {_PACKED}")
    lines += [f"  {source.weights.hint}"] if source.weights.hint else []
    raise CheckpointError("\n".join(lines))


def _their_name(rules: Sequence[Rule], ours: str) -> str:
    """The tensor of theirs that ours comes from, also when it is one of several parts of it."""
    parts = [Rename(rule.theirs[0], part) for rule in rules for part in rule.ours]
    return rename(parts, ours, "to_theirs") or ours


def _check_shapes(source: Source, translated: Translated, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = []
    for name, expected in shapes.items():
        found = tuple(translated.meta(name).shape)
        if found != expected:
            their_names = ", ".join(translated.moves[name].sources)
            wrong.append(f"{their_names}: found {list(found)}, expected {list(expected)}")
    if wrong:
        listed = "\n  ".join([*shorten(wrong, _SHOWN), *([source.weights.hint] if source.weights.hint else [])])
        raise CheckpointError(f"{source.path}: tensors of another shape than the config says\n  {listed}")


def _refuse_packed(source: Source, translated: Translated, shapes: Mapping[str, object]) -> None:
    """Whole numbers, and such of one byte, would be taken for weights a hundred times too large."""
    for name in shapes:
        found = translated.meta(name)
        if not found.is_floating_point() or found.itemsize < 2:
            theirs, word = translated.moves[name].sources[0], str(found.dtype).removeprefix("torch.")
            raise CheckpointError(f"{source.path}: {theirs} is of {word}, plain numbers are expected. {_PACKED}")


def _check_copies(source: Source, moves: Sequence[Move]) -> None:
    for move in moves:
        if isinstance(move.rule, Drop) and move.rule.same_as is not None:
            dropped, kept = move.sources[0], move.rule.same_as
            if not is_copy(source.weights[dropped], source.weights[kept]):
                raise CheckpointError(f"{source.path}: {dropped} must be a copy of {kept} in this family, but differs")
