"""The shape of a ChatGLM2 and of the models that share it, from and to the original's `config.json`.

Which of the models it is, is told in generation.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from hanlin.core.errors import CheckpointError
from hanlin.formats.config_keys import TRANSFORMERS_KEYS, ConfigKeys
from hanlin.models.common.label_processor import LabelKind

from .generation import GENERATION_KEY, Generation, tell_generation

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class ChatGlm2Config:
    """Plain values; the original's names are in `_NAMES` below."""

    # Which of the models of this shape it is; decides the chat template and the special tokens, not the arithmetic.
    generation: Generation = "chatglm2"
    # Rows of the embedding; the tokenizer has fewer ids.
    vocab_size: int = 65024
    hidden_size: int = 4096
    num_layers: int = 28
    num_heads: int = 32
    # Key and value head g serves the query heads from g * num_heads / num_kv_heads on.
    num_kv_heads: int = 2
    # Width of a head; num_heads * head_dim need not be hidden_size.
    head_dim: int = 128
    ffn_size: int = 13696
    # Positions that the original's rotation table holds; more are an error there.
    max_length: int = 32768
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    has_final_norm: bool = True
    # Biases of query, key and value.
    qkv_bias: bool = True
    # Biases of all linears of a block, those of query, key and value included.
    linear_bias: bool = False
    # True: the residual is what the norm put out, not what went in.
    residual_after_norm: bool = False
    # Share of a head's channels, the first ones, that is rotated, in pairs of neighbours.
    rotary_share: float = 0.5
    rotary_base: float = ROTARY_BASE
    # Positions are divided by this before the rotation (ChatGLM2-6B-32K).
    position_divisor: float = 1.0
    # True: angles are rounded to the weights' dtype, as the original ChatGLM2 in fp16 does it.
    half_rotary: bool = False
    # True: the residual stream is fp32.
    fp32_residual: bool = False
    # Share dropped after attention and after the ffn, in training only.
    dropout: float = 0.0
    end_ids: tuple[int, ...] = (2,)
    pad_id: int = 0
    # Bits per weight of the blocks' linears, in memory as in the file: 8 or 4, 0 = plain numbers. Told from the files;
    # 0 over a quantised base unpacks it when it is loaded.
    bits: Literal[0, 4, 8] = 0
    # Names of labels: the head gives each a number, in place of the vocabulary's logits. Empty: a language model.
    labels: tuple[str, ...] = ()
    # one: of the labels one is right; several: any number of them are; number: each has a value (regression).
    label_kind: LabelKind = "one"
    # Share of the head's input that is dropped in training (the original's classifier_dropout).
    label_dropout: float = 0.0
    # How the original's files fuse query, key and value: head by head, or all query heads first. No effect here.
    fused_by_head: bool = False


def from_original(values: Mapping[str, Any], generation: Generation | None = None) -> ChatGlm2Config:
    """The shape that an original `config.json` states.

    generation: what `tell_generation` found with the help of the other files; None: told from the config alone.
    Raises: CheckpointError.
    """
    refuse_strangers(values)
    generation = generation or tell_generation(values).generation
    known = {ours: values[name] for name, ours in _NAMES.items() if values.get(name) is not None}
    is_grouped = values.get("multi_query_attention", False)
    known["num_kv_heads"] = values.get("multi_query_group_num", 1) if is_grouped else known.get("num_heads", 32)
    known["norm"] = "rms" if values.get("rmsnorm", True) else "layer"
    end = values.get("eos_token_id", 2)
    shape = ChatGlm2Config(
        **{
            **_CLASS_DEFAULTS,
            **known,
            **_rotation(values.get("rope_ratio") or 1, generation),
            "generation": generation,
            "end_ids": tuple(end) if isinstance(end, list) else (end,),
            "fused_by_head": not is_grouped,
        }
    )
    _check(shape, values)
    return shape


def to_original(config: ChatGlm2Config) -> dict[str, Any]:
    """The original `config.json` of a shape, without the keys that name Python files."""
    scales_base = config.generation in ("chatglm3", "glm4")
    ratio = config.rotary_base / ROTARY_BASE if scales_base else config.position_divisor
    values = {name: getattr(config, ours) for name, ours in _NAMES.items()}
    values |= {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "multi_query_attention": not config.fused_by_head,
        "multi_query_group_num": 1 if config.fused_by_head else config.num_kv_heads,
        "rmsnorm": config.norm == "rms",
        "eos_token_id": config.end_ids[0] if len(config.end_ids) == 1 else list(config.end_ids),
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "attention_dropout": 0.0,
        "bias_dropout_fusion": True,
        "original_rope": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        GENERATION_KEY: config.generation,
    }
    if config.labels:
        values |= _labels_to_original(config)
    if ratio != 1:
        values["rope_ratio"] = int(ratio) if ratio == int(ratio) else ratio
    return dict(sorted(values.items()))


def _labels_to_original(config: ChatGlm2Config) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMForSequenceClassification"],
        "num_labels": len(config.labels),
        "id2label": {str(number): name for number, name in enumerate(config.labels)},
        "label2id": {name: number for number, name in enumerate(config.labels)},
        "problem_type": {ours: theirs for theirs, ours in LABEL_KINDS.items()}[config.label_kind],
        "classifier_dropout": config.label_dropout or None,
    }


def refuse_strangers(values: Mapping[str, Any]) -> None:
    """See that a config.json is of this family.

    Raises: CheckpointError for ChatGLM-6B (v1), and for other models.
    """
    kind = values.get("model_type", "chatglm")
    if kind != "chatglm":
        raise CheckpointError(f'config.json: model_type is {kind!r}, expected "chatglm"; choose the family that fits')
    if v1 := [key for key in ("inner_hidden_size", "position_encoding_2d") if key in values]:
        raise CheckpointError(
            f"config.json: this is ChatGLM-6B, the first one (it has {' and '.join(v1)}): another architecture under "
            "the same model_type, which is not supported; take ChatGLM2-6B or later"
        )
    if not {"multi_query_attention", "padded_vocab_size"} & values.keys():
        raise CheckpointError(
            "config.json: neither multi_query_attention nor padded_vocab_size is in it, so this is no ChatGLM2 or "
            "later; look at the folder with `hanlin inspect`"
        )


def _rotation(ratio: float, generation: Generation) -> dict[str, float]:
    if generation in ("chatglm3", "glm4"):
        return {"rotary_base": ROTARY_BASE * ratio}
    return {"position_divisor": float(ratio)}


def _check(shape: ChatGlm2Config, values: Mapping[str, Any]) -> None:
    originals = {ours: name for name, ours in _NAMES.items()}
    for field in fields(shape):
        value = getattr(shape, field.name)
        if field.type == "int" and field.name != "pad_id" and (type(value) is not int or value < 1):
            name = originals.get(field.name, field.name)
            raise CheckpointError(f"config.json: {name} is {value!r}, expected a whole number above 0")
    if shape.num_heads % shape.num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {shape.num_heads} is no multiple of "
            f"multi_query_group_num {shape.num_kv_heads}"
        )
    if shape.head_dim % 4:
        raise CheckpointError(f"config.json: kv_channels is {shape.head_dim}, expected a multiple of 4")
    if (bits := values.get("quantization_bit")) not in (None, 0, 4, 8):
        raise CheckpointError(f"config.json: quantization_bit is {bits!r}, expected 0 (plain numbers), 4 or 8")
    if (count := values.get("num_hidden_layers", shape.num_layers)) != shape.num_layers:
        raise CheckpointError(f"config.json: num_layers is {shape.num_layers}, but num_hidden_layers is {count}")
    assert shape.generation in get_args(Generation), shape.generation


# original name -> ours, for values that are taken as they are.
_NAMES = {
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "ffn_size",
    "seq_length": "max_length",
    "layernorm_epsilon": "norm_eps",
    "post_layer_norm": "has_final_norm",
    "add_qkv_bias": "qkv_bias",
    "add_bias_linear": "linear_bias",
    "apply_residual_connection_post_layernorm": "residual_after_norm",
    "fp32_residual_connection": "fp32_residual",
    "hidden_dropout": "dropout",
    "pad_token_id": "pad_id",
}

# The original's problem_type -> our label_kind.
LABEL_KINDS: dict[str, LabelKind] = {
    "single_label_classification": "one",
    "multi_label_classification": "several",
    "regression": "number",
}

ORIGINAL_KEYS = ConfigKeys(
    read=(
        *_NAMES,
        *("multi_query_attention", "multi_query_group_num", "rmsnorm", "rope_ratio", "quantization_bit"),
        *("classifier_dropout", "num_hidden_layers", GENERATION_KEY),
    ),
    harmless=(
        *TRANSFORMERS_KEYS,
        # The first two scale scores and undo it; the third is not applied with torch 2, the fourth a kernel's choice.
        *("apply_query_key_layer_scaling", "attention_softmax_in_fp32", "attention_dropout", "bias_dropout_fusion"),
        # It is padded_vocab_size; and what a prefix is, is told from the prefix.
        *("vocab_size", "pre_seq_len", "prefix_projection"),
    ),
    neutral={
        "model_type": ("chatglm",),
        "original_rope": (True,),
        "interleaved_qkv": (False,),
        "rotary_percent": (0.5,),
        "tie_word_embeddings": (False,),
    },
)

# What the original's configuration class takes for a key that is absent, where it is not our default.
_CLASS_DEFAULTS = {"max_length": 2048, "qkv_bias": False}


def _glm4(**changes: Any) -> ChatGlm2Config:
    shape: dict[str, Any] = {
        "generation": "glm4",
        "vocab_size": 151552,
        "num_layers": 40,
        "norm_eps": 1.5625e-07,
        "max_length": 131072,
        "rotary_base": 500 * ROTARY_BASE,
        "end_ids": (151329, 151336, 151338),
        "pad_id": 151329,
    }
    return ChatGlm2Config(**{**shape, **changes})


SIZES = {
    "tiny": ChatGlm2Config(hidden_size=128, num_layers=4, num_heads=4, head_dim=32, ffn_size=344, max_length=2048),
    "small": ChatGlm2Config(hidden_size=512, num_layers=8, num_heads=8, head_dim=64, ffn_size=1376, max_length=2048),
    "6b": ChatGlm2Config(),
    # The divisor is 32768 / 8192; the published config was not at hand.
    "6b-32k": ChatGlm2Config(position_divisor=4.0),
    "chatglm3-6b": ChatGlm2Config(generation="chatglm3", max_length=8192),
    "codegeex2-6b": ChatGlm2Config(generation="codegeex2", max_length=8192),
    "glm4-9b-chat": _glm4(),
    "glm4-9b-chat-1m": _glm4(num_kv_heads=4, max_length=1048576, rotary_base=10000 * ROTARY_BASE),
}
