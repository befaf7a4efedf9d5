"""Soft prompts in the originals' files: one tensor that CPM-2 keeps among those of the whole model.

A file with that tensor alone, which no original writes, is read and written as well: it is what tuning trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.core.errors import CheckpointError
from hanlin.core.files import published
from hanlin.formats.files import open_weights, write_pickle
from hanlin.formats.format import FamilyFacts
from hanlin.formats.source import open_theirs

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "soft_prompt.weight"


def their_name(family: FamilyFacts) -> str | None:
    """What the family's original calls its soft prompts; None where it has none."""
    return next((form.soft_prompt for form in family.formats.values() if form.soft_prompt is not None), None)


def find_prompts(path: Path, family: FamilyFacts) -> torch.Tensor | None:
    """The soft prompts `[length, hidden_size]` in an original checkpoint, alone or beside a whole model.

    Raises: CheckpointError when the path holds no readable weights.
    """
    if (name := their_name(family)) is None:
        return None
    weights = open_theirs(path, family)
    return weights.get(name)


def set_prompts(model: nn.Module, prompts: torch.Tensor, path: Path) -> None:
    """Let a model's soft prompts be those found at `path`.

    Raises: CheckpointError when there are more or fewer of them, or of another width.
    """
    import torch

    weight = model.get_parameter(NAME)
    if weight.shape != prompts.shape:
        found, expected = list(prompts.shape), list(weight.shape)
        raise CheckpointError(f"{path}: its soft prompts are {found}, the model's {expected}; see tuning.length")
    with torch.no_grad():
        weight.copy_(prompts)


def original_prompts(model: nn.Module, family: FamilyFacts) -> dict[str, torch.Tensor]:
    """The soft prompts of a model under the original's name.

    Raises: CheckpointError when the family's original has none.
    """
    if (name := their_name(family)) is None:
        raise CheckpointError(f"the original of {family.name} knows no soft prompts; write an adapter folder")
    return {name: model.get_parameter(NAME).detach()}


def _holds(path: Path) -> bool:
    """No model is a single tensor; soft prompts are."""
    return path.is_file() and len(open_weights(path)) == 1


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    prompts = find_prompts(path, family)
    if prompts is None:
        return None
    settings = read_settings(path, {"method": "prompt", "length": len(prompts)})
    return Adapter(path, PROMPTS.title, settings, {NAME: prompts})


def _save(model: nn.Module, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False) -> None:
    tensors = original_prompts(model, family)
    with published(path, "replace" if overwrite else "refuse") as beside:
        write_pickle(beside, tensors)


PROMPTS = AdapterFormat("a file with soft prompts under the original CPM-2's name", _holds, _open, _save, family="cpm2")
AMONG_BASE = replace(PROMPTS, title="soft prompts among the tensors of a CPM-2", tensors=original_prompts)
