"""The layouts of CPM-1's weights: the released one, that of the hub, and that of the pretraining program.

The released files tell neither the number of heads nor the form of GELU: heads follow from the published sizes, else
from a `cpm1_config.json` that we write beside the weights, else they must be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import TRANSFORMERS_KEYS, ConfigKeys
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
from hanlin.formats.rules import Drop, FirstRows, Rename, Rule, SplitHeads, SplitRows, Transposed

from .config import SIZES, Cpm1Config
from .huggingface import check_expressible, write_companions

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = ("chinese_vocab.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")

QUERY_KEY_VALUE = ("query", "key", "value")
_OUR = "blocks.{i}."
_BLOCK, _MEGATRON = "transformer.layers.{i}.", "language_model."
_PARTS = ("weight", "bias")
# Part of a block in the originals' words -> in ours; weight and bias alike.
OF_BLOCK = {
    "input_layernorm": "attention.norm",
    "attention.dense": "attention.output",
    "post_attention_layernorm": "ffn.norm",
    "mlp.dense_h_to_4h": "ffn.up",
    "mlp.dense_4h_to_h": "ffn.down",
}
_OF_HUB_BLOCK = {"ln_1": "attention.norm", "ln_2": "ffn.norm"}
_OF_HUB_LINEARS = {"attn.c_proj": "attention.output", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
_NAMES = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_length",
}
_HUB_NAMES = {
    "n_layer": "num_layers",
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "vocab_size": "vocab_size",
    "n_positions": "max_length",
    "layer_norm_epsilon": "norm_eps",
    "initializer_range": "init_std",
    "resid_pdrop": "dropout",
    "attn_pdrop": "attention_dropout",
}
_HUB_GELU = {"gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}

PARTITIONS = {
    "word_embeddings.weight": Partition(),
    # Every rank holds its heads' rows of query, key and value.
    "query_key_value.weight": Partition(parts=3),
    "query_key_value.bias": Partition(parts=3),
    "dense_h_to_4h.weight": Partition(),
    "dense_h_to_4h.bias": Partition(),
    "attention.dense.weight": Partition(dim=1),
    "dense_4h_to_h.weight": Partition(dim=1),
}
# Version 2 puts the rows head by head, so that a rank's share is one run of rows.
_MEGATRON_PARTITIONS = {
    **PARTITIONS,
    "query_key_value.weight": Partition(),
    "query_key_value.bias": Partition(),
}
_MEGATRON_FUSED = {"query_key_value.weight": 3, "query_key_value.bias": 3}
_MEGATRON_NAMES = {
    **{theirs: ours for theirs, ours in _NAMES.items() if ours != "vocab_size"},
    "layernorm_epsilon": "norm_eps",
    "apply_residual_connection_post_layernorm": "residual_after_norm",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "init_method_std": "init_std",
    "make_vocab_size_divisible_by": "vocab_multiple",
}
_HEADS = ("num_heads", "head_dim")
_TANH_FLAGS = ("openai_gelu", "bias_gelu_fusion")
_RELEASED_KEYS = ConfigKeys(read=(*_NAMES, "gelu"), harmless=("seq_length",))
_HUB_KEYS = ConfigKeys(
    read=(*_HUB_NAMES, "activation_function", "n_inner", "embd_pdrop"),
    harmless=(
        *TRANSFORMERS_KEYS,
        *("n_ctx", "reorder_and_upcast_attn"),
        *(f"summary_{part}" for part in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")),
    ),
    neutral={
        "model_type": ("gpt2",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "tie_word_embeddings": (True,),
    },
)
_MEGATRON_KEYS = ConfigKeys(
    read=(*_MEGATRON_NAMES, *_TANH_FLAGS, "num_unique_layers"),
    # The program's GPT-2 does not look at the last three.
    harmless=(*ARGUMENTS_WITHOUT_EFFECT, "kv_hidden_size", "ff_hidden_size", "hidden_bias"),
)


def part_names(part: str, names: Sequence[str] = QUERY_KEY_VALUE) -> list[str]:
    """Our names of what a fused linear holds; part: weight or bias."""
    return [f"{_OUR}attention.{name}.{part}" for name in names]


def _released_rules(config: Cpm1Config) -> list[Rule]:
    del config
    fused = [SplitRows(f"{_BLOCK}attention.query_key_value.{part}", part_names(part)) for part in _PARTS]
    return [
        Rename("word_embeddings.weight", "embedding.weight"),
        Rename("position_embeddings.weight", "positions.weight"),
        *fused,
        *_block_rules(""),
    ]


def _megatron_rules(config: Cpm1Config) -> list[Rule]:
    fused = f"{_MEGATRON}{_BLOCK}attention.query_key_value."
    return [
        FirstRows(f"{_MEGATRON}embedding.word_embeddings.weight", "embedding.weight", config.vocab_size),
        Rename(f"{_MEGATRON}embedding.position_embeddings.weight", "positions.weight"),
        *(SplitHeads(f"{fused}{part}", part_names(part), config.head_dim) for part in _PARTS),
        *_block_rules(_MEGATRON),
    ]


def _block_rules(prefix: str) -> list[Rule]:
    """What is called alike in both of the originals' forms, but for the prefix."""
    rules: list[Rule] = [Rename(f"{prefix}transformer.final_layernorm.{part}", f"norm.{part}") for part in _PARTS]
    for theirs, ours in OF_BLOCK.items():
        rules += [Rename(f"{prefix}{_BLOCK}{theirs}.{part}", f"{_OUR}{ours}.{part}") for part in _PARTS]
    return rules


def _hub_rules(config: Cpm1Config) -> list[Rule]:
    del config
    theirs = "transformer.h.{i}."
    linears = [Rename(f"{theirs}{name}.weight", f"{_OUR}{ours}.weight") for name, ours in _OF_HUB_LINEARS.items()]
    fused = [SplitRows(f"{theirs}attn.c_attn.{part}", part_names(part)) for part in _PARTS]
    rules: list[Rule] = [
        Rename("transformer.wte.weight", "embedding.weight"),
        Rename("transformer.wpe.weight", "positions.weight"),
        Drop("lm_head.weight", same_as="transformer.wte.weight"),
        # Tables of the causal mask that older versions stored.
        Drop(f"{theirs}attn.bias"),
        Drop(f"{theirs}attn.masked_bias"),
        *map(Transposed, [*linears, fused[0]]),
        fused[1],
        *(Rename(f"{theirs}{name}.bias", f"{_OUR}{ours}.bias") for name, ours in _OF_HUB_LINEARS.items()),
    ]
    for part in _PARTS:
        rules.append(Rename(f"transformer.ln_f.{part}", f"norm.{part}"))
        rules += [Rename(f"{theirs}{name}.{part}", f"{_OUR}{ours}.{part}") for name, ours in _OF_HUB_BLOCK.items()]
    return rules


def _read_released(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    found = inferred(weights, "")
    told = {ours: values[theirs] for theirs, ours in _NAMES.items() if theirs in values and ours != "vocab_size"}
    return with_heads({**found, **told, **({"gelu": values["gelu"]} if "gelu" in values else {})})


def _write_released(config: Cpm1Config) -> dict[str, Any]:
    return {**{theirs: getattr(config, ours) for theirs, ours in _NAMES.items()}, "gelu": config.gelu}


def _read_hub(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    del weights
    if not values:
        raise CheckpointError("no config.json beside the weights; the tensors alone do not tell the number of heads")
    function = values.get("activation_function", "gelu_new")
    if not isinstance(function, str) or function not in _HUB_GELU:
        raise CheckpointError(f"config.json: activation_function {function!r}; known: {', '.join(_HUB_GELU)}")
    found = {ours: values[theirs] for theirs, ours in _HUB_NAMES.items() if theirs in values}
    size = found.setdefault("hidden_size", 768)
    if (after := values.get("resid_pdrop", 0.1)) != (first := values.get("embd_pdrop", 0.1)):
        raise CheckpointError(f"config.json: embd_pdrop is {first} and resid_pdrop {after}; here one dropout is both")
    width = values.get("n_inner") or (4 * size if _is_count(size) else size)
    return with_heads({**found, "gelu": _HUB_GELU[function], "ffn_size": width})


def _write_hub(config: Cpm1Config) -> dict[str, Any]:
    check_expressible(config)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        "embd_pdrop": config.dropout,
        "n_inner": None if config.ffn_size == 4 * config.hidden_size else config.ffn_size,
        **{theirs: getattr(config, ours) for theirs, ours in _HUB_NAMES.items()},
    }


def _read_megatron(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The program's arguments, where the file has them; values: those that we wrote beside it."""
    arguments = weights.arguments if isinstance(weights, Weights) else {}
    if arguments.get("num_unique_layers") not in (None, arguments.get("num_layers")):
        raise CheckpointError("its layers share weights (--num-unique-layers), which is not supported")
    given = {**arguments, **values}
    told = {ours: given[theirs] for theirs, ours in _MEGATRON_NAMES.items() if theirs in given}
    gelu = "tanh" if any(given.get(flag) for flag in _TANH_FLAGS) else "erf"
    return with_heads({**inferred(weights, f"{_MEGATRON}embedding."), **told, "gelu": gelu})


def _write_megatron_config(config: Cpm1Config) -> dict[str, Any]:
    names = {theirs: getattr(config, ours) for theirs, ours in _MEGATRON_NAMES.items()}
    return {**names, "openai_gelu": config.gelu == "tanh", "tokenizer_type": "GPT2BPETokenizer"}


def _write_megatron(
    form: MegatronForm,
    folder: Path,
    config: Cpm1Config,
    tensors: Mapping[str, torch.Tensor],
    ranks: int,
    iteration: int,
) -> None:
    if (config.head_dim * config.num_heads, config.ffn_size) != (config.hidden_size, 4 * config.hidden_size):
        raise CheckpointError("this GPT-2 has other proportions than the program knows (hidden_size, 4 * hidden_size)")
    arguments = _write_megatron_config(config)
    write_megatron(folder, tensors, _MEGATRON_PARTITIONS, arguments, form=form, ranks=ranks, iteration=iteration)


def _open_megatron(path: Path) -> Weights | None:
    return open_megatron(path, _MEGATRON_PARTITIONS, _MEGATRON_FUSED)


def inferred(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """What the shapes of an original's tensors say; prefix: what its names begin with.

    Raises: CheckpointError.
    """
    embedding, positions = f"{prefix}word_embeddings.weight", f"{prefix}position_embeddings.weight"
    up = [name for name in weights if name.endswith("mlp.dense_h_to_4h.weight")]
    if missing := [name for name in (embedding, positions) if name not in weights] or ([] if up else ["mlp"]):
        raise CheckpointError(f"the tensor {missing[0]} is missing; these are no weights of CPM-1")
    vocab_size, hidden_size = meta_of(weights, embedding).shape
    for name in (name for name in weights if name.endswith("attention.dense.weight")):
        if (columns := meta_of(weights, name).shape[1]) != hidden_size:
            raise CheckpointError(
                f"{name} has {columns} columns, but the hidden size is {hidden_size}: a share of the heads; copy the "
                "files of all model-parallel ranks"
            )
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "max_length": meta_of(weights, positions).shape[0],
        "num_layers": len(up),
        "ffn_size": meta_of(weights, up[0]).shape[0],
    }


def with_heads(values: dict[str, Any]) -> dict[str, Any]:
    """The values with a number and a size of heads, if they say it or are those of a published size.

    What is no number is left for the check of all values.
    """
    published = [(size.hidden_size, size.num_heads) for name, size in SIZES.items() if name != "tiny"]
    size, heads = values["hidden_size"], values.get("num_heads")
    if "num_heads" not in values:
        heads = next((number for width, number in published if width == size), None)
        values = values if heads is None else {**values, "num_heads": heads}
    return {**values, "head_dim": size // heads} if _is_count(size) and _is_count(heads) else values


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0


FORMATS = {
    "original": Format(
        title="the released CPM-1: {iteration}/mp_rank_XX_model_states.pt and a tracker file",
        rules=_released_rules,
        read_config=_read_released,
        write_config=_write_released,
        config_keys=_RELEASED_KEYS,
        config_files=("cpm1_config.json", "../cpm1_config.json"),
        partitions=PARTITIONS,
        tokenizer_files=TOKENIZER_FILES,
        needed=_HEADS,
        head_rows=head_rows,
    ),
    "huggingface": Format(
        title="transformers' GPT2LMHeadModel (TsinghuaAI/CPM-Generate)",
        rules=_hub_rules,
        read_config=_read_hub,
        write_config=_write_hub,
        config_keys=_HUB_KEYS,
        companions=write_companions,
        dtype_key="torch_dtype",
        weights_file="model.safetensors",
        shard_bytes=2 * 10**9,
        tokenizer_files=TOKENIZER_FILES,
        peft="CAUSAL_LM",
    ),
    **{
        form: Format(
            title=f"CPM-1-Pretrain: {title}",
            rules=_megatron_rules,
            read_config=_read_megatron,
            write_config=_write_megatron_config,
            config_keys=_MEGATRON_KEYS,
            config_files=("cpm1_config.json", "../cpm1_config.json"),
            open=_open_megatron,
            write=partial(_write_megatron, form),
            tokenizer_files=TOKENIZER_FILES,
            needed=_HEADS,
            head_rows=head_rows,
        )
        for form, title in FORMS.items()
    },
}
