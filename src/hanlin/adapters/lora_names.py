"""The names of low-rank additions in foreign layouts, and their tensors as these expect them.

A linear's addition is called as its weight is, which the rules of the family's layouts translate (lora_parts.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.lora_parts import LowRank, cut
from hanlin.core.errors import CheckpointError, shorten
from hanlin.formats.files import find_weights, open_weights
from hanlin.formats.format import FamilyFacts
from hanlin.formats.rules import Rule, rename
from hanlin.formats.source import plain_values

if TYPE_CHECKING:
    import torch
    from torch import nn

PEFT_PREFIX = "base_model.model."
_MARK = "lora_"
MERGE_THERE = "merge it into its base where it was trained (merge_and_unload), and take that as model.base"
_UNREAD = {
    "lora_embedding_": "an addition to an embedding",
    "trainable_tokens_": "trained rows of an embedding",
    "lora_B.bias": "a trained bias of lora_B",
    "lora_B.default.bias": "a trained bias of lora_B",
}
"""What is in the names of tensors that a LoRA of PEFT may have besides."""
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)")
"""What PEFT puts into the name of a tensor that is trained whole, in some versions also on the disk."""
# PEFT's `x.lora_A.weight`, with the adapter's name `x.lora_A.default.weight`; OpenDelta's `x.lora.lora_A`.
_ADDITION = re.compile(
    r"(?P<module>.+?)(\.lora)?\.(?P<matrix>lora_[AB]|lora_magnitude_vector)(\.(?P<adapter>[^.]+))??(\.weight)?"
)
MAGNITUDE = "lora_magnitude_vector"
"""Of a DoRA, in PEFT."""


@dataclass(frozen=True)
class Additions:
    """pairs: an addition to each module, in the order of the file; others: whole tensors, such as a head for labels."""

    pairs: Sequence[LowRank]
    others: Mapping[str, torch.Tensor]

    def ours(self, family: FamilyFacts, config: Any) -> dict[str, LowRank]:
        """The additions by our names of their linears; a name that no layout of the family knows stays as it is.

        config: of the base, by which fused linears are cut; None: the family's default.
        Raises: CheckpointError for a fused linear of another shape.
        """
        layouts = rules_of(family, config)
        return {name: part for pair in self.pairs for name, part in cut(pair, layouts).items()}

    def whole(self, family: FamilyFacts, config: Any) -> dict[str, torch.Tensor]:
        """The other tensors by our names, or theirs where no layout of the family knows them."""
        layouts = rules_of(family, config)
        found = {name: (rename(rules, name, "to_ours") for rules in layouts) for name in self.others}
        return {next(filter(None, ours), name): self.others[name] for name, ours in found.items()}


def rules_of(family: FamilyFacts, config: Any) -> list[Sequence[Rule]]:
    """The rules of each layout of a family, whose tensors are plain numbers; config: None for the family's default."""
    config = replace(config or family.config(), **plain_values(family))
    return [form.rules(config) for form in family.formats.values()]


def tensors_of(pairs: Mapping[str, LowRank]) -> dict[str, torch.Tensor]:
    """Additions by our names of their linears, as a tuned model calls their tensors."""
    inner = {f"{name}.lora_A": pair.inner for name, pair in pairs.items()}
    outer = {f"{name}.lora_B": pair.outer for name, pair in pairs.items()}
    lengths = {f"{name}.lora_magnitude": pair.magnitude for name, pair in pairs.items() if pair.magnitude is not None}
    return inner | outer | lengths


def read_additions(path: Path) -> Additions | None:
    """The additions of a file or folder in a foreign naming; None where there are none.

    Raises: CheckpointError.
    """
    if path.is_dir() and find_weights(path) is None:
        return None
    weights = open_weights(path)
    if not any(_MARK in name for name in weights):
        return None
    for mark, what in _UNREAD.items():
        if odd := [name for name in weights if mark in name]:
            raise CheckpointError(f"{path}: {what} (it has {odd[0]}), which is not read; {MERGE_THERE}")
    matches = {name: _ADDITION.fullmatch(name.removeprefix(PEFT_PREFIX)) for name in weights}
    if len(adapters := {match["adapter"] for match in matches.values() if match}) > 1:
        raise CheckpointError(
            f"{path}: holds several adapters ({', '.join(sorted(map(str, adapters)))}); save one alone"
        )
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, match in matches.items():
        if match:
            found.setdefault(match["module"], {})[match["matrix"]] = weights[name]
    if odd := [module for module, parts in found.items() if not {"lora_A", "lora_B"} <= parts.keys()]:
        raise CheckpointError(f"{path}: of lora_A and lora_B only one is there: {', '.join(shorten(odd))}")
    others = {_SAVED.sub("", name.removeprefix(PEFT_PREFIX)): weights[name] for name in weights if not matches[name]}
    pairs = [
        LowRank(parts["lora_A"], parts["lora_B"], module, magnitude=parts.get(MAGNITUDE))
        for module, parts in found.items()
    ]
    return Additions(pairs, others)


def one_rank(path: Path, pairs: Mapping[str, LowRank]) -> int:
    """Raises: CheckpointError where the additions differ in their rank, or there are none."""
    ranks = {len(pair.inner) for pair in pairs.values()}
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


def low_rank_of(model: nn.Module, settings: Any) -> dict[str, LowRank]:
    """The additions of a model, each as one product that bypasses the linear's factor, which the foreign layouts take
    for granted, by the names of their linears.
    """
    from hanlin.layers.lora import LoraLinear

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            inner, outer = module.low_rank()
            outer = outer * module.scale if settings.form == "scaled" else outer
            magnitude = module.lora_magnitude.detach() if module.has_magnitude else None
            found[name] = LowRank(inner, outer, name, magnitude=magnitude)
    return found
