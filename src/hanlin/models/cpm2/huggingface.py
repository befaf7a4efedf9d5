"""CPM-2 as transformers' `T5ForConditionalGeneration`, in the form of T5 1.1: a gated GELU, a head of its own.

The arithmetic is the same. No tokenizer there gives the ids, since jieba cuts the texts first; hanlin encodes them, and
the ids are handed over.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.config_keys import TRANSFORMERS_KEYS, ConfigKeys
from hanlin.formats.rules import Drop, Rename, Rule
from hanlin.tokens.vocabulary import VOCAB_FILE

from .config import Cpm2Config
from .pieces import START_ID
from .tokenizer import Cpm2Tokenizer

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
_FFN = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
_LAYERS = {
    "encoder": {"SelfAttention": "attention", "DenseReluDense": "ffn"},
    "decoder": {"SelfAttention": "attention", "EncDecAttention": "cross_attention", "DenseReluDense": "ffn"},
}
_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_kv": "head_dim",
    "d_ff": "ffn_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "relative_attention_num_buckets": "num_distance_buckets",
    "relative_attention_max_distance": "max_distance",
    "dropout_rate": "dropout",
    "layer_norm_epsilon": "norm_eps",
}
CONFIG_KEYS = ConfigKeys(
    read=(*_NAMES, "num_decoder_layers"),
    harmless=(*TRANSFORMERS_KEYS, "initializer_factor", "n_positions", "classifier_dropout", "dense_act_fn"),
    neutral={
        "model_type": ("t5",),
        "feed_forward_proj": ("gated-gelu",),
        "is_gated_act": (True,),
        "is_encoder_decoder": (True,),
        # T5 1.1 in its files: what the decoder puts out is not scaled.
        "tie_word_embeddings": (False,),
        "scale_decoder_outputs": (False,),
    },
)


def rules(config: Cpm2Config) -> list[Rule]:
    """The table of names."""
    del config
    found: list[Rule] = [
        Rename("shared.weight", "embedding.weight"),
        Rename("lm_head.weight", "head.weight"),
        *(Drop(f"{stack}.embed_tokens.weight", same_as="shared.weight") for stack in _LAYERS),
    ]
    for stack, layers in _LAYERS.items():
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found += [
            Rename(bias, f"{stack}_bias.weight"),
            Rename(f"{stack}.final_layer_norm.weight", f"{stack}_norm.weight"),
        ]
        for number, (kind, part) in enumerate(layers.items()):
            theirs, ours = f"{stack}.block.{{i}}.layer.{number}.", f"{stack}_blocks.{{i}}.{part}."
            linears = _FFN if part == "ffn" else _ATTENTION
            found.append(Rename(f"{theirs}layer_norm.weight", f"{ours}norm.weight"))
            found += [Rename(f"{theirs}{kind}.{a}.weight", f"{ours}{b}.weight") for a, b in linears.items()]
    return found


def read_config(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The values of a T5Config.

    Raises: CheckpointError.
    """
    del weights
    if missing := [theirs for theirs in _NAMES if theirs not in values]:
        raise CheckpointError(f"config.json: {', '.join(missing)} missing; take the one that lay beside these weights")
    if values.get("num_decoder_layers") not in (None, values["num_layers"]):
        raise CheckpointError("config.json: encoder and decoder have different numbers of layers (num_decoder_layers)")
    return {ours: values[theirs] for theirs, ours in _NAMES.items()}


def write_config(config: Cpm2Config) -> dict[str, Any]:
    """A T5Config.

    Raises: CheckpointError for what it cannot express.
    """
    if config.num_experts:
        raise CheckpointError(
            "no class of transformers computes CPM-2's mixture of experts (SwitchTransformers chooses its experts "
            "otherwise); write it in the layout 'experts'"
        )
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        **{theirs: getattr(config, ours) for theirs, ours in _NAMES.items()},
        "num_decoder_layers": config.num_layers,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "decoder_start_token_id": START_ID,
        "use_cache": True,
    }


def write_companions(folder: Path, config: Cpm2Config, options: object) -> None:
    """Write where an answer begins and ends.

    Raises: DataError for a damaged vocabulary.
    """
    del config, options
    if not (folder / VOCAB_FILE).is_file():
        log.warning("%s: written without a tokenizer, since none lies beside the source; name one with --vocab", folder)
        return
    log.warning(
        "%s: no tokenizer of transformers gives CPM-2's ids; encode texts with hanlin and hand over the ids", folder
    )
    tokenizer = Cpm2Tokenizer.load(folder)
    ids = {"eos_token_id": tokenizer.sentinel(1), "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", ids | {"decoder_start_token_id": START_ID})
    write_json(folder / "config.json", read_json_object(folder / "config.json") | ids)
