"""The layouts of CPM-Bee's weights: the original's `pytorch_model.bin`, and Hugging Face's with its prefix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import TRANSFORMERS_KEYS, ConfigKeys
from hanlin.formats.format import Format
from hanlin.formats.lazy import meta_of
from hanlin.formats.rules import Drop, Rename, Rule

from .config import CpmBeeConfig

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_NAMES = {
    "input_embedding.weight": "embedding.weight",
    "position_bias.relative_attention_bias": "position_bias.weight",
    "encoder.output_layernorm.weight": "norm.weight",
    "encoder.layers.{i}.self_att.layernorm_before_attention.weight": "blocks.{i}.attention.norm.weight",
    "encoder.layers.{i}.self_att.self_attention.project_q.weight": "blocks.{i}.attention.query.weight",
    "encoder.layers.{i}.self_att.self_attention.project_k.weight": "blocks.{i}.attention.key.weight",
    "encoder.layers.{i}.self_att.self_attention.project_v.weight": "blocks.{i}.attention.value.weight",
    "encoder.layers.{i}.self_att.self_attention.attention_out.weight": "blocks.{i}.attention.output.weight",
    "encoder.layers.{i}.ffn.layernorm_before_ffn.weight": "blocks.{i}.ffn.norm.weight",
    "encoder.layers.{i}.ffn.ffn.w_in.w_0.weight": "blocks.{i}.ffn.gate.weight",
    "encoder.layers.{i}.ffn.ffn.w_in.w_1.weight": "blocks.{i}.ffn.up.weight",
    "encoder.layers.{i}.ffn.ffn.w_out.weight": "blocks.{i}.ffn.down.weight",
}

_SHARED_KEYS = {
    "vocab_size": "vocab_size",
    "dim_head": "head_dim",
    "dim_ff": "ffn_size",
    "dropout_p": "dropout",
    "position_bias_num_buckets": "num_distance_buckets",
    "position_bias_num_segment_buckets": "num_relation_buckets",
    "position_bias_max_distance": "max_distance",
    "eps": "norm_eps",
    "half": "half_frequencies",
}
_ORIGINAL_KEYS = {"dim_model": "hidden_size", "num_heads": "num_heads", "num_layers": "num_layers", **_SHARED_KEYS}
_HUGGING_FACE_KEYS = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    **_SHARED_KEYS,
}

_BOTH_KEYS = {**_HUGGING_FACE_KEYS, **_ORIGINAL_KEYS}
_CONFIG_KEYS = ConfigKeys(
    read=(*_BOTH_KEYS, "mask_modules"),
    harmless=(*TRANSFORMERS_KEYS, "init_std"),
    neutral={"distance_scale": (16,), "model_type": ("cpmbee",), "tie_word_embeddings": (True,)},
)


def _original_rules(config: CpmBeeConfig) -> list[Rule]:
    return [Rename(theirs, ours) for theirs, ours in _NAMES.items()]


def _hugging_face_rules(config: CpmBeeConfig) -> list[Rule]:
    rules: list[Rule] = [Rename(f"cpmbee.{theirs}", ours) for theirs, ours in _NAMES.items()]
    return [*rules, Drop("lm_head.weight", same_as="cpmbee.input_embedding.weight")]


def _read_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Both spellings of the keys, whichever layout the weights have (people mix them); shapes tell what they leave out.

    Without JSON nothing tells eps, max_distance and the two halves of the bias table: the published values are taken.
    """
    told: dict[str, Any] = {}
    for theirs, ours in _BOTH_KEYS.items():
        if theirs in values and told.setdefault(ours, values[theirs]) != values[theirs]:
            raise CheckpointError(f"config: {theirs} is {values[theirs]}, but its other spelling is {told[ours]}")
    if values.get("mask_modules") is not None:
        told |= _removed(values["mask_modules"])
    if "num_layers" in told:
        if len(values.get("mask_modules") or []) not in (0, told["num_layers"]):
            raise CheckpointError(f"config: mask_modules has {len(values['mask_modules'])} pairs, not one per layer")
        return told
    return {**_inferred({name.removeprefix("cpmbee."): meta_of(weights, name) for name in weights}), **told}


def _write_config(keys: Mapping[str, str]) -> Callable[[CpmBeeConfig], dict[str, Any]]:
    def write(config: CpmBeeConfig) -> dict[str, Any]:
        values: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in keys.items()}
        if config.removed_attention or config.removed_ffn:
            values["mask_modules"] = [
                [layer in config.removed_attention, layer in config.removed_ffn] for layer in range(config.num_layers)
            ]
        return values

    return write


def _write_hugging_face(config: CpmBeeConfig) -> dict[str, Any]:
    written = _write_config(_HUGGING_FACE_KEYS)(config)
    return {"model_type": "cpmbee", "architectures": ["CpmBeeForCausalLM"], "distance_scale": 16, **written}


def _warn_of_code(folder: Path, config: CpmBeeConfig, options: object) -> None:
    del folder, config, options
    log.warning(
        "transformers has no class for CPM-Bee (CpmAntForCausalLM relates segments otherwise); the folder loads with "
        "trust_remote_code=True and the Python files of openbmb/cpm-bee-10b beside it"
    )


def _removed(mask_modules: Any) -> dict[str, Any]:
    if not (isinstance(mask_modules, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in mask_modules)):
        raise CheckpointError("config: mask_modules must be a list of pairs [attention removed, ffn removed]")
    return {
        "removed_attention": tuple(layer for layer, (attention, _) in enumerate(mask_modules) if attention),
        "removed_ffn": tuple(layer for layer, (_, ffn) in enumerate(mask_modules) if ffn),
    }


def _inferred(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The config that the shapes and names tell."""
    embedding = _needed(weights, "input_embedding.weight")
    num_heads = _needed(weights, "position_bias.relative_attention_bias").shape[1]
    attention = _layers_with(weights, "self_att.self_attention.project_q.weight")
    ffn = _layers_with(weights, "ffn.ffn.w_in.w_0.weight")
    num_layers = max([*attention, *ffn], default=-1) + 1
    query, gate = next(iter(attention.values()), None), next(iter(ffn.values()), None)
    values = {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "num_layers": num_layers,
        "num_heads": num_heads,
        "removed_attention": tuple(layer for layer in range(num_layers) if layer not in attention),
        "removed_ffn": tuple(layer for layer in range(num_layers) if layer not in ffn),
        "half_frequencies": embedding.element_size() == 2,
    }
    if query is not None:
        values["head_dim"] = query.shape[0] // num_heads
    if gate is not None:
        values["ffn_size"] = gate.shape[0]
    return values


def _needed(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in weights:
        raise CheckpointError(
            f"the tensor {name} is missing, and there is no config JSON beside the weights to go on with"
        )
    return weights[name]


def _layers_with(weights: Mapping[str, torch.Tensor], ending: str) -> dict[int, torch.Tensor]:
    """The tensors with this ending by layer number."""
    start = "encoder.layers."
    found = {name: name.removeprefix(start).removesuffix(f".{ending}") for name in weights if name.endswith(ending)}
    return {int(layer): weights[name] for name, layer in found.items() if name.startswith(start) and layer.isdigit()}


FORMATS = {
    "original": Format(
        title="OpenBMB/CPM-Bee: pytorch_model.bin (or any .bin/.pt) and a config JSON",
        rules=_original_rules,
        read_config=_read_config,
        write_config=_write_config(_ORIGINAL_KEYS),
        config_keys=_CONFIG_KEYS,
        config_files=("config.json", "cpm-bee-*.json"),
        tokenizer_files=("vocab.txt", "bee.txt"),
    ),
    "huggingface": Format(
        title="Hugging Face openbmb/cpm-bee-*: names with the prefix cpmbee.",
        rules=_hugging_face_rules,
        read_config=_read_config,
        write_config=_write_hugging_face,
        config_keys=_CONFIG_KEYS,
        companions=_warn_of_code,
        dtype_key="torch_dtype",
        tokenizer_files=("vocab.txt",),
        # That of the Python files of openbmb/cpm-bee-*.
        peft="CAUSAL_LM",
    ),
}
