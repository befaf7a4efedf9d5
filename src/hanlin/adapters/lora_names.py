"""The names of low-rank additions in foreign layouts, and their tensors as these expect them.

A linear's addition is called as its weight is, which the rules of the family's layouts translate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.files import find_weights, open_weights
from hanlin.formats.format import FamilyFacts
from hanlin.formats.load import added_parameters
from hanlin.formats.rules import Direction, rename

if TYPE_CHECKING:
    import torch
    from torch import nn

PEFT_PREFIX = "base_model.model."
_MARK = "lora_"


def find_additions(path: Path, family: FamilyFacts) -> dict[str, torch.Tensor]:
    """The additions of a file or folder in either foreign naming, by our names; {} where there are none."""
    if path.is_dir() and find_weights(path) is None:
        return {}
    weights = open_weights(path)
    if not any(_MARK in name for name in weights):
        return {}
    return {_our_name(name, family): weights[name] for name in weights}


def read_rank(path: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    """Raises: CheckpointError."""
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A")}
    if len(ranks) != 1:
        raise CheckpointError(f"{path}: one rank for all lora_A is expected, found {sorted(ranks) or 'no lora_A'}")
    return ranks.pop()


def has_additions(path: Path) -> bool:
    """Whether a file holds low-rank additions."""
    return path.is_file() and any(_MARK in name for name in open_weights(path))


def their_module(module: str, family: FamilyFacts, form: str) -> str:
    """What the family's layout of this name calls a linear of ours."""
    return _renamed(module, family, [form] if form in family.formats else [], "to_theirs")


def bypassing(model: nn.Module, settings: Any) -> dict[str, torch.Tensor]:
    """The additions as matrices that bypass the linear's factor, which the foreign layouts take for granted."""
    tensors = {name: parameter.detach() for name, parameter in added_parameters(model).items()}
    if settings.form == "original":
        return tensors
    return {
        name: tensor * model.get_submodule(name.rpartition(".")[0]).scale if name.endswith("lora_B") else tensor  # pyright: ignore[reportOperatorIssue]
        for name, tensor in tensors.items()
    }


def _our_name(name: str, family: FamilyFacts) -> str:
    """Either of the namings -> `<our module>.lora_A`; a name of neither stays as it is."""
    plain = name.removeprefix(PEFT_PREFIX)
    for form in family.formats.values():  # a head for labels, which is a whole tensor
        if whole := rename(form.rules(family.config()), plain, "to_ours"):
            return whole
    module, _, matrix = plain.removesuffix(".weight").rpartition(".")
    return f"{_renamed(module.removesuffix('.lora'), family, list(family.formats), 'to_ours')}.{matrix}"


def _renamed(module: str, family: FamilyFacts, forms: list[str], direction: Direction) -> str:
    """A module is called as its weight is."""
    for form in forms:
        if found := rename(family.formats[form].rules(family.config()), f"{module}.weight", direction):
            return found.removesuffix(".weight")
    return module
