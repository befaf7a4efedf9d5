"""PEFT's adapter folder of a LoRA, for the model in Hugging Face's naming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.adapters.cpm_bee_delta import ORIGINAL_ALPHA
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.lora_names import PEFT_PREFIX, bypassing, find_additions, read_rank, their_module
from hanlin.core.files import read_json_object, write_json
from hanlin.core.manifest import published_folder
from hanlin.formats.files import write_safetensors
from hanlin.formats.format import FamilyFacts

if TYPE_CHECKING:
    from torch import nn

_WEIGHTS = "adapter_model.safetensors"
_SETTINGS = "adapter_config.json"
_TITLE = "PEFT's adapter folder of a LoRA"


def _holds(path: Path) -> bool:
    return (path / _SETTINGS).is_file()


def _open(path: Path, family: FamilyFacts) -> Adapter | None:
    if not _holds(path):
        return None
    stated, tensors = read_json_object(path / _SETTINGS), find_additions(path, family)
    values = {
        "method": "lora",
        "rank": read_rank(path, tensors),
        "alpha": stated.get("lora_alpha", ORIGINAL_ALPHA),
        "dropout": stated.get("lora_dropout", 0.0),
        "form": "original",  # PEFT adds to the finished output
    }
    return Adapter(path, _TITLE, read_settings(path, values).resolved(tensors), tensors)


def _save(model: nn.Module, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False) -> None:
    refuse_labels(model)
    tensors, modules = {}, []
    for name, tensor in bypassing(model, settings).items():
        module, _, matrix = name.rpartition(".")
        modules.append(their_module(module, family, "huggingface"))
        tensors[f"{PEFT_PREFIX}{modules[-1]}.{matrix}.weight"] = tensor
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    with published_folder(path, overwrite=overwrite) as beside:
        write_safetensors(beside / _WEIGHTS, tensors)
        write_json(beside / _SETTINGS, config)


PEFT = AdapterFormat(_TITLE, _holds, _open, _save)
