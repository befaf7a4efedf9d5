"""The names of low-rank additions in foreign layouts, and their tensors as these expect them.

A linear's addition is called as its weight is, which the rules of the family's layouts translate. One that was trained
on a fused linear of theirs is one of each of ours that it holds: all have its A, and each its rows of B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.files import find_weights, open_weights
from hanlin.formats.format import FamilyFacts
from hanlin.formats.load import added_parameters
from hanlin.formats.rules import Rule, Transposed, find_moves, rename
from hanlin.formats.source import plain_values

if TYPE_CHECKING:
    import torch
    from torch import nn

PEFT_PREFIX = "base_model.model."
_MARK = "lora_"
_DORA = "lora_magnitude_vector"
# PEFT's `x.lora_A.weight`, with the adapter's name `x.lora_A.default.weight`; OpenDelta's `x.lora.lora_A`.
_ADDITION = re.compile(r"(?P<module>.+?)(\.lora)?\.(?P<matrix>lora_[AB])(\.(?P<adapter>[^.]+))??(\.weight)?")


@dataclass(frozen=True)
class Additions:
    """pairs: their module -> A `[rank, in]` and B `[out, rank]`; others: whole tensors, such as a head for labels."""

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    others: Mapping[str, torch.Tensor]

    def ours(self, family: FamilyFacts, config: Any) -> dict[str, torch.Tensor]:
        """The tensors by our names; a name that no layout of the family knows stays as it is.

        config: of the base, by which fused linears are cut; None: the family's default.
        Raises: CheckpointError for a fused linear of another shape.
        """
        config = replace(config or family.config(), **plain_values(family))
        rules = [form.rules(config) for form in family.formats.values()]
        tensors = {}
        for module, (inner, outer) in self.pairs.items():
            for ours, rows in _parts(module, outer, rules):
                tensors |= {f"{ours}.lora_A": inner, f"{ours}.lora_B": rows.contiguous()}
        for name, tensor in self.others.items():
            found = (rename(each, name, "to_ours") for each in rules)
            tensors[next(filter(None, found), name)] = tensor
        return tensors


def read_additions(path: Path) -> Additions | None:
    """The additions of a file or folder in a foreign naming; None where there are none.

    Raises: CheckpointError.
    """
    if path.is_dir() and find_weights(path) is None:
        return None
    weights = open_weights(path)
    if not any(_MARK in name for name in weights):
        return None
    if dora := [name for name in weights if _DORA in name]:
        raise CheckpointError(
            f"{path}: a DoRA (it has {dora[0]}), which changes the size of the base's rows as well and is not read; "
            "merge it into its base where it was trained (merge_and_unload), and take that as model.base"
        )
    matches = {name: _ADDITION.fullmatch(name.removeprefix(PEFT_PREFIX)) for name in weights}
    if len(adapters := {match["adapter"] for match in matches.values() if match}) > 1:
        raise CheckpointError(
            f"{path}: holds several adapters ({', '.join(sorted(map(str, adapters)))}); save one alone"
        )
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, match in matches.items():
        if match:
            found.setdefault(match["module"], {})[match["matrix"]] = weights[name]
    if odd := [module for module, both in found.items() if len(both) != 2]:
        raise CheckpointError(f"{path}: of lora_A and lora_B only one is there: {', '.join(shorten(odd))}")
    others = {name.removeprefix(PEFT_PREFIX): weights[name] for name, match in matches.items() if not match}
    return Additions({module: (both["lora_A"], both["lora_B"]) for module, both in found.items()}, others)


def one_rank(path: Path, additions: Additions) -> int:
    """Raises: CheckpointError where the additions differ in their rank, or there are none."""
    ranks = {len(inner) for inner, _ in additions.pairs.values()}
    if len(ranks) != 1:
        raise CheckpointError(f"{path}: one rank for all lora_A is expected, found {sorted(ranks) or 'no lora_A'}")
    return ranks.pop()


def has_additions(path: Path) -> bool:
    """Whether a file holds low-rank additions."""
    return path.is_file() and any(_MARK in name for name in open_weights(path))


def their_module(module: str, family: FamilyFacts, form: str) -> str:
    """What the family's layout of this name calls a linear of ours.

    Raises: CheckpointError where it has no linear that is this one alone.
    """
    rules = family.formats[form].rules(family.config()) if form in family.formats else []
    if found := rename(rules, f"{module}.weight", "to_theirs"):
        return found.removesuffix(".weight")
    raise CheckpointError(
        f"the layout {form!r} of {family.name} has no linear that is {module} alone, so an addition to it cannot be "
        "written there; work it into the base: `hanlin convert BASE NEW_FOLDER --merge ADAPTER`"
    )


def bypassing(model: nn.Module, settings: Any) -> dict[str, torch.Tensor]:
    """The additions as matrices that bypass the linear's factor, which the foreign layouts take for granted."""
    tensors = {name: parameter.detach() for name, parameter in added_parameters(model).items()}
    if settings.form == "original":
        return tensors
    return {
        name: tensor * model.get_submodule(name.rpartition(".")[0]).scale if name.endswith("lora_B") else tensor  # pyright: ignore[reportOperatorIssue]
        for name, tensor in tensors.items()
    }


def _parts(module: str, outer: torch.Tensor, layouts: list[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Our linears that a linear of theirs is, each with its rows of B."""
    for rules in layouts:
        for move in find_moves(rules, [f"{module}.weight"], "to_ours"):
            if move.targets:
                rows = _rows(move.rule, outer)
                yield from zip((target.removesuffix(".weight") for target in move.targets), rows, strict=True)
                return
    yield module, outer


def _rows(rule: Rule, outer: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """B `[out, rank]` cut as the rule cuts a weight, whose matrix may stand the other way round in its file."""
    return rule.to_ours((outer.t() if isinstance(rule, Transposed) else outer,))
