"""The layouts of CPM-2's weights: files of model-parallel ranks, with fused projections and copies of the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.expert_ranks import open_experts, write_experts
from hanlin.formats.files import Weights
from hanlin.formats.format import Format
from hanlin.formats.lazy import meta_of
from hanlin.formats.ranks import Partition
from hanlin.formats.rules import Copies, Drop, Rename, Rule, SplitRows

from . import huggingface
from .config import Cpm2Config

if TYPE_CHECKING:
    import torch

PROMPTS = "encoder.prompt_embeds.weight"
"""Where a prompt-tuned checkpoint holds its prompts."""

_EMBEDDINGS = ("word_embeds.weight", "encoder.word_embeds.weight", "decoder.word_embeds.weight")
_OF_BLOCK = {
    "self_attn.self_attn.dense.weight": "attention.output.weight",
    "self_attn.layer_norm.weight": "attention.norm.weight",
}
_OF_FFN = {
    "dense_relu_dense.wi_0.weight": "gate.weight",
    "dense_relu_dense.wi_1.weight": "up.weight",
    "dense_relu_dense.wo.weight": "down.weight",
    "layer_norm.weight": "norm.weight",
}
# The number of an expert stands behind it.
_EXPERT = ".expert_network."
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
_CONFIG_KEYS = ConfigKeys(
    read=_KEYS,
    # What the original reads and does not use.
    harmless=(
        *("num_decoder_layers", "feed_forward_proj", "initializer_factor", "max_position_embeddings", "use_cache"),
        *("do_dim_trick", "vocab_size"),
    ),
    neutral={"relative_attention_max_distance": (128,)},
)

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
    del config
    return _rules_with({f"ff.{theirs}": f"ffn.{name}" for theirs, name in _OF_FFN.items()})


def _expert_rules(config: Cpm2Config) -> list[Rule]:
    del config
    network, ours = "ff.expert_network.{e}.", "ffn.experts.{e}."
    names = {f"{network}{theirs}": f"{ours}{name}" for theirs, name in _OF_FFN.items()}
    return _rules_with({**names, "ff.expert_centroids": "ffn.centroids"})


def _rules_with(of_ffn: Mapping[str, str]) -> list[Rule]:
    """of_ffn: names in the feed-forward of a block -> ours."""
    of_block = {**_OF_BLOCK, **of_ffn}
    rules: list[Rule] = [
        Copies(_EMBEDDINGS, "embedding.weight"),
        Rename("lm_head.weight", "head.weight"),
        # Prompts are an addition of their own (adapters/cpm2_prompts.py).
        Drop(PROMPTS),
    ]
    for stack in ("encoder", "decoder"):
        block, ours = f"{stack}.blocks.{{i}}", f"{stack}_blocks.{{i}}"
        names = of_block if stack == "encoder" else {**of_block, **_OF_CROSS}
        rules += [
            Rename(f"{stack}.final_layernorm.weight", f"{stack}_norm.weight"),
            Rename(f"{stack}.blocks.0.self_attn.self_attn.relative_attention_bias.weight", f"{stack}_bias.weight"),
            *(Rename(f"{block}.{theirs}", f"{ours}.{name}") for theirs, name in names.items()),
            SplitRows(
                f"{block}.self_attn.self_attn.project.weight",
                [f"{ours}.attention.{part}.weight" for part in ("query", "key", "value")],
            ),
        ]
    fused = "decoder.blocks.{i}.cross_attn.cross_attn.project_kv.weight"
    return [
        *rules,
        SplitRows(fused, [f"decoder_blocks.{{i}}.cross_attention.{part}.weight" for part in ("key", "value")]),
    ]


def _read_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Keys that the original reads but does not use are ignored; sizes that are not told are those of the tensors."""
    return {**_inferred(weights), **{ours: values[theirs] for theirs, ours in _KEYS.items() if theirs in values}}


def _inferred(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    embedding = _needed(weights, "word_embeds.weight")
    bias = _needed(weights, "encoder.blocks.0.self_attn.self_attn.relative_attention_bias.weight")
    fused = _needed(weights, "encoder.blocks.0.self_attn.self_attn.project.weight")
    projections = [name for name in weights if name.startswith("encoder.") and name.endswith(".project.weight")]
    gates = [*(name for name in weights if name.endswith("wi_0.weight")), "the gates (wi_0)"]
    centroids = [name for name in weights if name.endswith("expert_centroids")]
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "num_layers": len(projections),
        "num_distance_buckets": bias.shape[0],
        "num_heads": bias.shape[1],
        "head_dim": fused.shape[0] // 3 // bias.shape[1],
        "ffn_size": _needed(weights, gates[0]).shape[0],
        "num_experts": _needed(weights, centroids[0]).shape[0] if centroids else 0,
    }


def _needed(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Its shape, as a tensor without data."""
    if name not in weights:
        raise CheckpointError(f"the tensor {name} is missing; these are no weights of CPM-2")
    return meta_of(weights, name)


def _write_dense_config(config: Cpm2Config) -> dict[str, Any]:
    if config.num_experts:
        raise CheckpointError("a mixture of experts has files of its own; write it in the layout 'experts'")
    return _write_config(config)


def _write_expert_config(config: Cpm2Config) -> dict[str, Any]:
    if not config.num_experts:
        raise CheckpointError("this model is no mixture of experts; write it in the layout 'original'")
    return _write_config(config)


def _open_experts(path: Path) -> Weights | None:
    return open_experts(path, PARTITIONS, _EXPERT)


def _write_experts(
    folder: Path, config: Cpm2Config, tensors: Mapping[str, torch.Tensor], ranks: int, iteration: int
) -> None:
    del config
    write_experts(folder, tensors, PARTITIONS, _EXPERT, ranks, iteration)


def _write_config(config: Cpm2Config) -> dict[str, Any]:
    values = {theirs: getattr(config, ours) for theirs, ours in _KEYS.items()}
    return {**values, "num_decoder_layers": config.num_layers, "feed_forward_proj": "relu"}


FORMATS = {
    "original": Format(
        title="TsinghuaAI/CPM-2: {iteration}/mp_rank_XX_model_states.pt, a tracker file and cpm2_config.json",
        rules=_rules,
        read_config=_read_config,
        write_config=_write_dense_config,
        config_keys=_CONFIG_KEYS,
        config_files=("cpm2_config.json", "cpm2_config*.json", "../cpm2_config*.json"),
        partitions=PARTITIONS,
        tokenizer_files=("vocab.txt",),
        soft_prompt=PROMPTS,
    ),
    "experts": Format(
        title="CPM-2's mixture of experts: {iteration}/mp_rank_EE_XX_model_states.pt (expert, rank)",
        rules=_expert_rules,
        read_config=_read_config,
        write_config=_write_expert_config,
        config_keys=_CONFIG_KEYS,
        config_files=("cpm2_config.json", "cpm2_config*.json", "../cpm2_config*.json"),
        open=_open_experts,
        write=_write_experts,
        tokenizer_files=("vocab.txt",),
    ),
    "huggingface": Format(
        title="transformers' T5ForConditionalGeneration: safetensors",
        rules=huggingface.rules,
        read_config=huggingface.read_config,
        write_config=huggingface.write_config,
        config_keys=huggingface.CONFIG_KEYS,
        companions=huggingface.write_companions,
        dtype_key="torch_dtype",
        weights_file="model.safetensors",
        shard_bytes=2 * 10**9,
        tokenizer_files=("vocab.txt",),
        peft="SEQ_2_SEQ_LM",
    ),
}
