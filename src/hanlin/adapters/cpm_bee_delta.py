"""The delta file of the original CPM-Bee (OpenDelta): low-rank additions in a `.pt` file that states no settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.lora_names import bypassing, has_additions, one_rank, read_additions, tensors_of, their_module
from hanlin.core.files import published
from hanlin.formats.files import write_pickle
from hanlin.formats.format import FamilyFacts

if TYPE_CHECKING:
    from torch import nn

ORIGINAL_ALPHA = 16.0
"""The original's scripts fix it; the file does not say it."""
_TITLE = "a delta file of low-rank additions, as the original CPM-Bee writes them"


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if (additions := read_additions(path)) is None:
        return None
    pairs = additions.ours(family, config)
    values = {
        "method": "lora",
        "rank": one_rank(path, pairs),
        "alpha": ORIGINAL_ALPHA,
        "form": "original",  # OpenDelta adds to the finished output
    }
    tensors = tensors_of(pairs) | additions.whole(family, config)
    return Adapter(path, _TITLE, read_settings(path, values).resolved(tensors), tensors)


def _save(model: nn.Module, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False) -> None:
    """The original reads it with alpha 16, so B is adjusted to that, and expects rank 8; the dtype is the base's."""
    refuse_labels(model)
    tensors = {}
    for name, tensor in bypassing(model, settings).items():
        module, _, matrix = name.rpartition(".")
        dtype = model.get_parameter(f"{module}.weight").dtype
        adjusted = tensor * (settings.alpha / ORIGINAL_ALPHA) if matrix == "lora_B" else tensor
        tensors[f"{their_module(module, family, 'original')}.lora.{matrix}"] = adjusted.to(dtype)
    with published(path, "replace" if overwrite else "refuse") as beside:
        write_pickle(beside, tensors)


DELTA = AdapterFormat(_TITLE, has_additions, _open, _save)
