"""PEFT's adapter folder of a LoRA, for the model in Hugging Face's naming or the original's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.adapters.adapter import Adapter, AdapterFormat, read_settings
from hanlin.adapters.labels import refuse_labels
from hanlin.adapters.lora_names import PEFT_PREFIX, Additions, bypassing, read_additions, their_module
from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.core.manifest import published_folder
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.files import write_safetensors
from hanlin.formats.format import FamilyFacts

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
LORA, PREFIX_TUNING = "LORA", "PREFIX_TUNING"
_TITLE = "PEFT's adapter folder of a LoRA"

COMMON_KEYS = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("runtime_config", "task_type"),
)
"""What PEFT writes into any adapter_config.json, and what changes nothing."""
_BEGINNINGS = "corda_config eva_config loftq_config megatron_config megatron_core qalora_group_size"
_PLAIN = r"(?:[\w^$|-]|\\?\.|\([\w.|\\-]*\))*"
_SIMPLE = re.compile(rf"(?=.{{0,300}}$){_PLAIN}(?:(?:\.\*|\\d\+){_PLAIN}){{0,3}}")
"""What a key of a pattern may look like: expressions from a file must not search for ever."""

_KEYS = ConfigKeys(
    read=("r", "lora_alpha", "lora_dropout", "use_rslora", "alpha_pattern", "rank_pattern"),
    harmless=(
        *COMMON_KEYS,
        # Which modules have an addition, and which are whole, is told by the tensors.
        *("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules"),
        # How the base's weight lies in the file; A and B do not depend on it.
        "fan_in_fan_out",
        # How A and B began, where that left the base alone.
        *_BEGINNINGS.split(),
    ),
    # Other ways to begin (PiSSA, OLoRA, LoftQ) take something out of the base, which the adapter then needs.
    neutral={"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None)},
)


def peft_type(path: Path) -> str | None:
    """PEFT's word for its method of tuning; None where a path is no adapter folder of it."""
    file = path / SETTINGS
    return str(read_json_object(file).get("peft_type", LORA)) if file.is_file() else None


def _holds(path: Path) -> bool:
    return peft_type(path) not in (None, PREFIX_TUNING)


def _open(path: Path, family: FamilyFacts, config: Any) -> Adapter | None:
    if not _holds(path):
        return None
    if (kind := peft_type(path)) != LORA:
        raise CheckpointError(
            f"{path / SETTINGS}: peft_type is {kind!r}; {LORA} and {PREFIX_TUNING} are read. Merge it into its base "
            "where it was trained, if it can be merged"
        )
    stated, additions = read_json_object(path / SETTINGS), read_additions(path)
    _KEYS.check(stated, str(path / SETTINGS))
    if additions is None:
        raise CheckpointError(f"{path}: no lora_A among its tensors; copy the whole adapter")
    settings, additions = _as_one(path, stated, additions)
    tensors = additions.ours(family, config)
    return Adapter(path, _TITLE, read_settings(path, settings).resolved(tensors), tensors)


def _as_one(path: Path, stated: Mapping[str, Any], additions: Additions) -> tuple[dict[str, Any], Additions]:
    """Settings, and additions of one rank with one factor, that compute what PEFT computes with a rank and a factor for
    each module: smaller ones are filled up with zeros, and B takes over by how much a factor is another.

    Raises: CheckpointError.
    """
    if type(stated.get("lora_alpha")) not in (int, float) or not stated["lora_alpha"]:
        raise CheckpointError(
            f"{path / SETTINGS}: lora_alpha is {stated.get('lora_alpha')!r}, expected a number other than 0"
        )
    factors = {module: _factor(path, stated, module, len(inner)) for module, (inner, _) in additions.pairs.items()}
    rank = max(len(inner) for inner, _ in additions.pairs.values())
    alphas = {factor * rank for factor in factors.values()}
    alpha = max(alphas)
    pairs = {
        module: (_filled(inner, rank, 0), _filled(outer, rank, 1) * (factors[module] * rank / alpha))
        if factors[module] * rank != alpha or len(inner) != rank
        else (inner, outer)
        for module, (inner, outer) in additions.pairs.items()
    }
    settings = {
        "method": "lora",
        "rank": rank,
        "alpha": alpha,
        "dropout": stated.get("lora_dropout", 0.0),
        "form": "original",  # PEFT adds to the finished output
    }
    return settings, replace(additions, pairs=pairs)


def _factor(path: Path, stated: Mapping[str, Any], module: str, rank: int) -> float:
    """By what PEFT multiplies the addition of a module.

    Raises: CheckpointError where the rank is not the stated one.
    """
    wanted = _of_pattern(path, stated, "rank_pattern", module, stated.get("r", rank))
    if wanted != rank:
        raise CheckpointError(f"{path / SETTINGS}: says rank {wanted} for {module}, whose lora_A has {rank} rows")
    alpha = _of_pattern(path, stated, "alpha_pattern", module, stated["lora_alpha"])
    return alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank)


def _of_pattern(path: Path, stated: Mapping[str, Any], name: str, module: str, otherwise: float) -> float:
    """The value of the first key of PEFT's pattern that is the end of a module's name, or fits it as an expression.

    Raises: CheckpointError for what is no pattern.
    """
    pattern = stated.get(name) or {}
    if not isinstance(pattern, Mapping) or not all(type(value) in (int, float) for value in pattern.values()):
        raise CheckpointError(f"{path / SETTINGS}: {name} is {pattern!r:.60}, expected modules and a number for each")
    for key, value in pattern.items():
        if not _SIMPLE.fullmatch(key):
            raise CheckpointError(
                f"{path / SETTINGS}: {name}: {key!r:.40} is no name of modules as PEFT's are; name them, or "
                "write them with dots, .* and \\d+ (three times at most)"
            )
        try:
            found = re.match(rf"(.*\.)?({key})$", module)
        except re.error as error:
            raise CheckpointError(f"{path / SETTINGS}: {name}: {key!r:.40} is no expression ({error})") from None
        if found:
            return value
    return otherwise


def _filled(tensor: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    import torch

    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((tensor, tensor.new_zeros(shape)), dim)


def _save(model: nn.Module, settings: Any, path: Path, family: FamilyFacts, *, overwrite: bool = False) -> None:
    refuse_labels(model)
    tensors, modules = {}, []
    for name, tensor in bypassing(model, settings).items():
        module, _, matrix = name.rpartition(".")
        modules.append(their_module(module, family, "huggingface"))
        tensors[f"{PEFT_PREFIX}{modules[-1]}.{matrix}.weight"] = tensor
    config = {
        "peft_type": LORA,
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
        write_safetensors(beside / WEIGHTS, tensors)
        write_json(beside / SETTINGS, config)


PEFT = AdapterFormat(_TITLE, _holds, _open, _save)
