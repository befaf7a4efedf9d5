"""The layout of the T5's weights: Megatron's files, with fused projections head by head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.files import Weights
from hanlin.formats.format import Format
from hanlin.formats.lazy import meta_of
from hanlin.formats.megatron import (
    ARGUMENTS_WITHOUT_EFFECT,
    FORMS,
    MegatronForm,
    head_rows,
    open_megatron,
    write_megatron,
)
from hanlin.formats.ranks import Partition
from hanlin.formats.rules import FirstRows, Rename, Rule, SplitHeads

from .config import Cpm1T5Config

if TYPE_CHECKING:
    import torch

_MODEL, _LAYER, _OUR = "language_model.", "language_model.transformer.layers.{i}.", "blocks.{i}."
_NORMS = {"input_layernorm": "attention.norm", "post_attention_layernorm": "ffn.norm"}
_LINEARS = {
    "attention.dense": "attention.output",
    "cross_attention.only_query": "cross_attention.query",
    "cross_attention.dense": "cross_attention.output",
    "mlp.dense_h_to_4h": "ffn.up",
    "mlp.dense_4h_to_h": "ffn.down",
}
_NAMES = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "kv_hidden_size": "head_dim",
    "ff_hidden_size": "ffn_size",
    "max_position_embeddings": "max_length",
    "layernorm_epsilon": "norm_eps",
    "apply_residual_connection_post_layernorm": "residual_after_norm",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "init_method_std": "init_std",
    "make_vocab_size_divisible_by": "vocab_multiple",
}
# kept: the T5 does not look at bias_gelu_fusion, which has an effect on the program's GPT-2 alone.
_KEYS = ConfigKeys(
    read=(*_NAMES, "openai_gelu", "hidden_bias", "num_unique_layers"),
    harmless=(*ARGUMENTS_WITHOUT_EFFECT, "bias_gelu_fusion"),
)

_FUSED = {"query_key_value.weight": 3, "cross_attention.key_value.weight": 2}
_PARTITIONS = {
    "word_embeddings.weight": Partition(),
    "key_value.weight": Partition(),
    "only_query.weight": Partition(),
    "attention.dense.weight": Partition(dim=1),
    "dense_h_to_4h.weight": Partition(),
    "dense_4h_to_h.weight": Partition(dim=1),
}


def _rules(config: Cpm1T5Config) -> list[Rule]:
    own = [f"{_OUR}attention.{part}.weight" for part in ("query", "key", "value")]
    across = [f"{_OUR}cross_attention.{part}.weight" for part in ("key", "value")]
    rules: list[Rule] = [
        FirstRows(f"{_MODEL}embedding.word_embeddings.weight", "embedding.weight", config.vocab_size),
        Rename(f"{_MODEL}embedding.position_embeddings.weight", "positions.weight"),
        SplitHeads(f"{_LAYER}attention.query_key_value.weight", own, config.head_dim),
        SplitHeads(f"{_LAYER}cross_attention.key_value.weight", across, config.head_dim),
        *(Rename(f"{_LAYER}{theirs}.weight", f"{_OUR}{ours}.weight") for theirs, ours in _LINEARS.items()),
    ]
    for part in ("weight", "bias"):
        rules.append(Rename(f"{_MODEL}transformer.final_layernorm.{part}", f"norm.{part}"))
        rules += [Rename(f"{_LAYER}{theirs}.{part}", f"{_OUR}{ours}.{part}") for theirs, ours in _NORMS.items()]
    return rules


def _read_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The program's arguments, where the file has them; values: those that we wrote beside it."""
    given = {**(weights.arguments if isinstance(weights, Weights) else {}), **values}
    if given.get("hidden_bias"):
        raise CheckpointError("made with --hidden-bias, with which the original itself cannot run a T5")
    if given.get("num_unique_layers") not in (None, given.get("num_layers")):
        raise CheckpointError("its layers share weights (--num-unique-layers), which is not supported")
    told = {ours: given[theirs] for theirs, ours in _NAMES.items() if theirs in given}
    return {**_inferred(weights), **told, "gelu": "tanh" if given.get("openai_gelu") else "erf"}


def _inferred(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    embedding, positions = (f"{_MODEL}embedding.{name}_embeddings.weight" for name in ("word", "position"))
    up = [name for name in weights if name.endswith("mlp.dense_h_to_4h.weight")]
    if embedding not in weights or positions not in weights or not up:
        raise CheckpointError("the embeddings or the blocks are missing; these are no weights of CPM-1's T5")
    return {
        "vocab_size": meta_of(weights, embedding).shape[0],
        "hidden_size": meta_of(weights, embedding).shape[1],
        "max_length": meta_of(weights, positions).shape[0],
        "num_layers": len(up) // 2,
        "ffn_size": meta_of(weights, up[0]).shape[0],
    }


def _write_config(config: Cpm1T5Config) -> dict[str, Any]:
    names = {theirs: getattr(config, ours) for theirs, ours in _NAMES.items()}
    return {**names, "openai_gelu": config.gelu == "tanh", "tokenizer_type": "T5Tokenizer"}


def _open(path: Path) -> Weights | None:
    return open_megatron(path, _PARTITIONS, _FUSED)


def _write(
    form: MegatronForm,
    folder: Path,
    config: Cpm1T5Config,
    tensors: Mapping[str, torch.Tensor],
    ranks: int,
    iteration: int,
) -> None:
    arguments = _write_config(config)
    write_megatron(folder, tensors, _PARTITIONS, arguments, form=form, ranks=ranks, iteration=iteration)


FORMATS = {
    form: Format(
        title=f"CPM-1-Pretrain: {title}",
        rules=_rules,
        read_config=_read_config,
        write_config=_write_config,
        config_keys=_KEYS,
        config_files=("cpm1_config.json", "../cpm1_config.json"),
        open=_open,
        write=partial(_write, form),
        tokenizer_files=("vocab.txt",),
        needed=("num_heads", "head_dim"),
        head_rows=head_rows,
    )
    for form, title in FORMS.items()
}
