"""PEFT's adapter folder of prefix tuning: one table of the keys and values of all blocks, as ours has it.

A prefix that was trained through a projection is saved there as what the projection makes of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.peft import PREFIX_TUNING
from hanlin.adapters.peft_config import COMMON_KEYS, SETTINGS, WEIGHTS, peft_type
from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.core.manifest import published_folder
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.files import open_weights, write_safetensors
from hanlin.formats.format import FamilyFacts

if TYPE_CHECKING:
    from torch import nn

_TITLE = "PEFT's adapter folder of prefix tuning"
_TABLE = "prompt_embeddings"
_OURS = "prefix.embedding.weight"
_KEYS = ConfigKeys(
    read=("num_virtual_tokens",),
    # The sizes are those of the table; its projection, if it had one, is worked into it.
    harmless=(
        *COMMON_KEYS,
        *("token_dim", "num_attention_heads", "num_layers", "encoder_hidden_size", "prefix_projection"),
    ),
    neutral={"num_transformer_submodules": (1, None)},
)


def _holds(path: Path) -> bool:
    return peft_type(path) == PREFIX_TUNING


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    stated, weights = read_json_object(path / SETTINGS), open_weights(path)
    _KEYS.check(stated, str(path / SETTINGS))
    if list(weights) != [_TABLE]:
        raise CheckpointError(f"{path}: one tensor {_TABLE} is expected, found {', '.join(list(weights)[:3])}")
    table = weights[_TABLE]
    if (length := stated.get("num_virtual_tokens", len(table))) != len(table):
        raise CheckpointError(
            f"{path / SETTINGS}: num_virtual_tokens is {length}, but {_TABLE} has {len(table)} rows; these files do "
            "not belong together"
        )
    settings = read_settings(path, {"method": "prefix", "length": len(table)})
    return Adapter(path, _TITLE, settings, {_OURS: table})


def _save(model: Any, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False) -> None:
    refuse_labels(model)
    table = projected(model)
    config = {
        "peft_type": PREFIX_TUNING,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": len(table),
        "num_layers": model.prefix.num_layers,
        "num_attention_heads": table.shape[1] // (2 * model.prefix.num_layers * model.prefix.head_dim),
        "token_dim": table.shape[1] // (2 * model.prefix.num_layers),
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    with published_folder(path, overwrite=overwrite) as beside:
        write_safetensors(beside / WEIGHTS, {_TABLE: table})
        write_json(beside / SETTINGS, config)


def projected(model: nn.Module) -> Any:
    """The keys and values `[length, width]` that a model's prefix stands for."""
    import torch

    encoder: Any = model.prefix
    with torch.no_grad():
        table = encoder.embedding.weight
        return (table if encoder.trans is None else encoder.trans(table)).detach().float().contiguous()


PEFT_PREFIX_TUNING = AdapterFormat(_TITLE, _holds, _open, _save)
