"""The delta file of the original CPM-Bee (OpenDelta): low-rank additions in a `.pt` file that states no settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.lora_names import (
    MERGE_THERE,
    has_additions,
    low_rank_of,
    one_rank,
    read_additions,
    tensors_of,
    their_module,
)
from hanlin.adapters.lora_parts import LowRank
from hanlin.core.errors import CheckpointError
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
    _refuse_magnitudes(str(path), pairs)
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
    pairs, tensors = low_rank_of(model, settings), {}
    _refuse_magnitudes("--to delta", pairs)
    for module, pair in pairs.items():
        theirs, dtype = their_module(module, family, "original"), model.get_parameter(f"{module}.weight").dtype
        adjusted = pair.outer * (settings.factor * len(pair.inner) / ORIGINAL_ALPHA)
        tensors |= {f"{theirs}.lora.lora_A": pair.inner.to(dtype), f"{theirs}.lora.lora_B": adjusted.to(dtype)}
    with published(path, "replace" if overwrite else "refuse") as beside:
        write_pickle(beside, tensors)


def _refuse_magnitudes(where: str, pairs: Mapping[str, LowRank]) -> None:
    if any(pair.magnitude is not None for pair in pairs.values()):
        raise CheckpointError(f"{where}: the original's file has no place for the magnitudes of a DoRA; {MERGE_THERE}")


DELTA = AdapterFormat(_TITLE, has_additions, _open, _save)
