"""The layout of CPM-2's weights: files of model-parallel ranks, with fused projections and copies of the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import Format
from hanlin.formats.ranks import Partition
from hanlin.formats.rules import Copies, Drop, Rename, Rule, Split

from .config import Cpm2Config

if TYPE_CHECKING:
    import torch

PROMPTS = "encoder.prompt_embeds.weight"
"""Where a prompt-tuned checkpoint holds its prompts."""

_EMBEDDINGS = ("word_embeds.weight", "encoder.word_embeds.weight", "decoder.word_embeds.weight")
_OF_BLOCK = {
    "self_attn.self_attn.dense.weight": "attention.output.weight",
    "self_attn.layer_norm.weight": "attention.norm.weight",
    "ff.dense_relu_dense.wi_0.weight": "ffn.gate.weight",
    "ff.dense_relu_dense.wi_1.weight": "ffn.up.weight",
    "ff.dense_relu_dense.wo.weight": "ffn.down.weight",
    "ff.layer_norm.weight": "ffn.norm.weight",
}
_OF_CROSS = {
    "cross_attn.cross_attn.project_q.weight": "cross_attention.query.weight",
    "cross_attn.cross_attn.dense.weight": "cross_attention.output.weight",
    "cross_attn.layer_norm.weight": "cross_attention.norm.weight",
}
_KEYS = {
    "d_model": "hidden_size",
    "d_ff": "ffn_size",
    "d_kv": "head_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "dropout_rate": "dropout",
    "init_method_std": "init_std",
    "layer_norm_epsilon": "norm_eps",
    "use_scaled_init_for_output_weights": "scaled_init",
    "relative_attention_num_buckets": "num_distance_buckets",
}

PARTITIONS = {
    "word_embeds.weight": Partition(),
    "lm_head.weight": Partition(),
    # Every rank holds its heads' rows of query, key and value.
    ".project.weight": Partition(parts=3),
    ".project_kv.weight": Partition(parts=2),
    ".project_q.weight": Partition(),
    ".relative_attention_bias.weight": Partition(dim=1),
    "attn.dense.weight": Partition(dim=1),
    ".wi_0.weight": Partition(),
    ".wi_1.weight": Partition(),
    ".wo.weight": Partition(dim=1),
}


def _rules(config: Cpm2Config) -> list[Rule]:
    rules: list[Rule] = [
        Copies(_EMBEDDINGS, "embedding.weight"),
        Rename("lm_head.weight", "head.weight"),
        # Prompts are an addition of their own (checkpoint/soft_prompt.py).
        Drop(PROMPTS),
    ]
    for stack in ("encoder", "decoder"):
        block, ours = f"{stack}.blocks.{{i}}", f"{stack}_blocks.{{i}}"
        names = _OF_BLOCK if stack == "encoder" else {**_OF_BLOCK, **_OF_CROSS}
        rules += [
            Rename(f"{stack}.final_layernorm.weight", f"{stack}_norm.weight"),
            Rename(f"{stack}.blocks.0.self_attn.self_attn.relative_attention_bias.weight", f"{stack}_bias.weight"),
            *(Rename(f"{block}.{theirs}", f"{ours}.{name}") for theirs, name in names.items()),
            Split(
                f"{block}.self_attn.self_attn.project.weight",
                [f"{ours}.attention.{part}.weight" for part in ("query", "key", "value")],
            ),
        ]
    fused = "decoder.blocks.{i}.cross_attn.cross_attn.project_kv.weight"
    return [*rules, Split(fused, [f"decoder_blocks.{{i}}.cross_attention.{part}.weight" for part in ("key", "value")])]


def _read_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Keys that the original reads but does not use are ignored; sizes that are not told are those of the tensors."""
    return {**_inferred(weights), **{ours: values[theirs] for theirs, ours in _KEYS.items() if theirs in values}}


def _inferred(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    embedding = _needed(weights, "word_embeds.weight")
    bias = _needed(weights, "encoder.blocks.0.self_attn.self_attn.relative_attention_bias.weight")
    fused = _needed(weights, "encoder.blocks.0.self_attn.self_attn.project.weight")
    gates = [name for name in weights if name.startswith("encoder.") and name.endswith("wi_0.weight")]
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "num_layers": len(gates),
        "num_distance_buckets": bias.shape[0],
        "num_heads": bias.shape[1],
        "head_dim": fused.shape[0] // 3 // bias.shape[1],
        "ffn_size": _needed(weights, "encoder.blocks.0.ff.dense_relu_dense.wi_0.weight").shape[0],
    }


def _needed(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in weights:
        raise CheckpointError(f"the tensor {name} is missing; these are no weights of CPM-2")
    return weights[name]


def _write_config(config: Cpm2Config) -> dict[str, Any]:
    values = {theirs: getattr(config, ours) for theirs, ours in _KEYS.items()}
    return {**values, "num_decoder_layers": config.num_layers, "feed_forward_proj": "relu"}


FORMATS = {
    "original": Format(
        title="TsinghuaAI/CPM-2: {iteration}/mp_rank_XX_model_states.pt, a tracker file and cpm2_config.json",
        rules=_rules,
        read_config=_read_config,
        write_config=_write_config,
        config_files=("cpm2_config.json", "cpm2_config*.json", "../cpm2_config*.json"),
        partitions=PARTITIONS,
        tokenizer_files=("vocab.txt",),
        soft_prompt=PROMPTS,
    ),
}
