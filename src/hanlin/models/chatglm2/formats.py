"""The layouts of the weights: the original's folder (also in 8 or 4 bits), transformers' native `GlmForCausalLM`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object
from hanlin.formats.config_keys import TRANSFORMERS_KEYS, ConfigKeys
from hanlin.formats.files import Weights
from hanlin.formats.format import Format
from hanlin.formats.gguf_file import PACKINGS
from hanlin.formats.lazy import meta_of
from hanlin.formats.rules import Drop, Rename, Rule, SplitHeads, SplitRows

from . import gguf
from .config import (
    LABEL_KINDS,
    ORIGINAL_KEYS,
    ROTARY_BASE,
    ChatGlm2Config,
    from_original,
    refuse_strangers,
    to_original,
)
from .generation import GENERATION_KEY, Told, tell_generation
from .huggingface import write_companions
from .quant import Quantised
from .tokenizer import SETTINGS_FILE, byte_ranks_in

if TYPE_CHECKING:
    import torch

    from hanlin.layers.packing import Bits

_ReadConfig = Callable[[Mapping[str, Any], Mapping[str, "torch.Tensor"]], dict[str, Any]]

_PREFIX = "transformer.prefix_encoder."
_SHARD_BYTES = 2 * 10**9
_TOKENIZER_FILES = ("tokenizer.model", "ice_text.model", "tokenizer_config.json")
_CODE = ("configuration_*.py", "modeling_*.py", "tokenization_*.py")
_CODE_BYTES = 1 << 20  # of a Python file; no original's has a tenth of it

_LAYER = "transformer.encoder.layers.{i}."
_NORMS = {
    f"{_LAYER}input_layernorm": "blocks.{i}.attention.norm",
    f"{_LAYER}post_attention_layernorm": "blocks.{i}.ffn.norm",
    "transformer.encoder.final_layernorm": "norm",
}
_ENDS = {
    "transformer.embedding.word_embeddings.weight": "embedding.weight",
    "classifier_head.weight": "head.label_weight",
    "classifier_head.bias": "head.label_bias",
}
_LABEL_BIAS = "classifier_head.bias"
_VOCABULARY_HEAD = "transformer.output_layer.weight"
_QUERY_KEY_VALUE = tuple(f"blocks.{{i}}.attention.{name}" for name in ("query", "key", "value"))
_GATE_UP = ("blocks.{i}.ffn.gate", "blocks.{i}.ffn.up")

_GLM_LAYER = "model.layers.{i}."
_GLM_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{_GLM_LAYER}input_layernorm.weight": "blocks.{i}.attention.norm.weight",
    f"{_GLM_LAYER}post_attention_layernorm.weight": "blocks.{i}.ffn.norm.weight",
    f"{_GLM_LAYER}self_attn.o_proj.weight": "blocks.{i}.attention.output.weight",
    f"{_GLM_LAYER}mlp.down_proj.weight": "blocks.{i}.ffn.down.weight",
    **{
        f"{_GLM_LAYER}self_attn.{short}_proj.{part}": f"{ours}.{part}"
        for short, ours in zip("qkv", _QUERY_KEY_VALUE, strict=True)
        for part in ("weight", "bias")
    },
}
_GLM_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "norm_eps",
    "attention_bias": "qkv_bias",
    "pad_token_id": "pad_id",
}
_GLM_CONFIG_KEYS = ConfigKeys(
    read=(
        *_GLM_KEYS,
        *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rope_type", "factor"),
        GENERATION_KEY,
    ),
    harmless=TRANSFORMERS_KEYS,
    neutral={
        "model_type": ("glm",),
        "hidden_act": ("silu",),
        "attention_dropout": (0,),
        "tie_word_embeddings": (False,),
        "layer_types": ("full_attention", ""),
    },
)
_ROPE_KEYS = ConfigKeys(read=("rope_theta", "partial_rotary_factor", "rope_type", "type", "factor"))


def _original_rules(config: ChatGlm2Config) -> list[Rule]:
    if config.bits:
        raise CheckpointError(
            f"model.config.bits is {config.bits}, but these weights are plain numbers; rewrite them first with "
            f"`hanlin convert FOLDER NEW_FOLDER --to int{config.bits}`"
        )
    return [*_linears(config, "weight"), *_other_rules(config)]


def _quantised_rules(bits: Bits | None) -> Callable[[ChatGlm2Config], list[Rule]]:
    def rules(config: ChatGlm2Config) -> list[Rule]:
        if config.bits:
            # Rows are packed one by one, so that those of a fused weight and their scales can be parted as they are.
            return [*_linears(config, "weight"), *_linears(config, "weight_scale"), *_other_rules(config)]
        inner = config.num_heads * config.head_dim
        columns = (config.hidden_size, inner, config.hidden_size, config.ffn_size)
        linears = zip(_linears(config, "weight"), columns, strict=True)
        return [*(Quantised(rule, count, bits) for rule, count in linears), *_other_rules(config)]

    return rules


def _linears(config: ChatGlm2Config, part: str) -> list[Rule]:
    """A part of the linears that the original quantises."""
    return [
        _fused_heads(config, part),
        Rename(f"{_LAYER}self_attention.dense.{part}", f"blocks.{{i}}.attention.output.{part}"),
        SplitRows(f"{_LAYER}mlp.dense_h_to_4h.{part}", _ending(_GATE_UP, part)),
        Rename(f"{_LAYER}mlp.dense_4h_to_h.{part}", f"blocks.{{i}}.ffn.down.{part}"),
    ]


def _other_rules(config: ChatGlm2Config) -> list[Rule]:
    norms = [Rename(f"{theirs}.{part}", f"{ours}.{part}") for theirs, ours in _NORMS.items() for part in _PARTS]
    return [
        *(Rename(theirs, ours) for theirs, ours in _ENDS.items()),
        # ChatGLMForSequenceClassification has this one too, and never uses it.
        Drop(_VOCABULARY_HEAD) if config.labels else Rename(_VOCABULARY_HEAD, "head.weight"),
        *norms,
        *_linears(config, "bias"),
        # Only its dtype is used there, which we take from the config.
        Drop("transformer.rotary_pos_emb.inv_freq"),
        # A trained prefix is an adapter of its own (adapters/chatglm2_prefix.py).
        *(Drop(f"{_PREFIX}{part}") for part in ("embedding.weight", "trans.{n}.weight", "trans.{n}.bias")),
    ]


_PARTS = ("weight", "bias")


def _fused_heads(config: ChatGlm2Config, part: str) -> Rule:
    theirs, ours = f"{_LAYER}self_attention.query_key_value.{part}", _ending(_QUERY_KEY_VALUE, part)
    if config.fused_by_head:
        return SplitHeads(theirs, ours, config.head_dim)
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return SplitRows(theirs, ours, [count * config.head_dim for count in heads])


def _ending(names: tuple[str, ...], part: str) -> list[str]:
    return [f"{name}.{part}" for name in names]


def _glm_rules(config: ChatGlm2Config) -> list[Rule]:
    fused = SplitRows(f"{_GLM_LAYER}mlp.gate_up_proj.weight", _ending(_GATE_UP, "weight"))
    return [*(Rename(theirs, ours) for theirs, ours in _GLM_NAMES.items()), fused]


def tell(folder: Path) -> Told:
    """Which model the folder of an original holds, told from its config, its tokenizer's and the text of its code.

    Raises: CheckpointError for ChatGLM-6B (v1), for strangers, and when the files do not settle it.
    """
    values = read_json_object(folder / "config.json")
    refuse_strangers(values)
    return _tell(values, folder)


def _tell(values: Mapping[str, Any], folder: Path) -> Told:
    tokenizer = folder / SETTINGS_FILE
    try:
        return tell_generation(
            values,
            read_json_object(tokenizer) if tokenizer.is_file() else None,
            "\n".join(_text(path) for pattern in _CODE for path in sorted(folder.glob(pattern))),
            byte_ranks_in(folder),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _text(path: Path) -> str:
    """The text of a Python file, which is searched and never run."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return stream.read(_CODE_BYTES).decode(errors="replace")


def _remark(values: Mapping[str, Any], weights: Weights) -> str:
    told = _tell(values, weights.files[0].parent)
    return f"generation {told.generation}: {told.reason}"


def _read_quantised(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    told = _read_original(values, weights)
    if (bits := values.get("quantization_bit")) not in (4, 8):
        raise CheckpointError(f"config.json: quantization_bit is {bits!r}, expected 4 or 8 beside quantised weights")
    return {**told, "bits": bits}


def _refuse_strangers(values: Mapping[str, Any]) -> None:
    if values.get("model_type") == "chatglm":
        refuse_strangers(values)


def _read_original(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    assert isinstance(weights, Weights), weights
    folder = weights.files[0].parent
    if not values:
        raise CheckpointError(f"{folder}: no config.json beside the weights; the tensors alone do not tell the shape")
    refuse_strangers(values)
    told = _tell(values, folder)
    return {**vars(from_original(values, told.generation)), **_read_labels(values, weights)}


def _read_labels(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What ChatGLMForSequenceClassification is told beyond the shape; nothing for a language model."""
    if _LABEL_BIAS not in weights:
        return {}
    count = len(meta_of(weights, _LABEL_BIAS))
    # transformers does not write what is its default: two labels, called so.
    names = values.get("id2label") or {str(number): f"LABEL_{number}" for number in range(count)}
    if sorted(names, key=int) != [str(number) for number in range(count)]:
        raise CheckpointError(f"config.json: id2label has {len(names)} names, but classifier_head has {count} rows")
    kind = values.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
    if kind not in LABEL_KINDS:
        raise CheckpointError(f"config.json: problem_type is {kind!r}, expected one of {', '.join(LABEL_KINDS)}")
    return {
        "labels": tuple(names[str(number)] for number in range(count)),
        "label_kind": LABEL_KINDS[kind],
        "label_dropout": float(values.get("classifier_dropout") or 0),
    }


def _read_glm(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """transformers' GlmConfig, of version 5 (rope_parameters) and 4 (top-level keys)."""
    if (kind := values.get("model_type", "glm")) != "glm":
        raise CheckpointError(f"config.json: model_type is {kind!r}, but the tensors are called as in GlmForCausalLM")
    if missing := [theirs for theirs in _GLM_KEYS if theirs not in values and theirs != "pad_token_id"]:
        raise CheckpointError(f"config.json: {', '.join(missing)} missing; take the config.json of this GlmForCausalLM")
    told = {ours: values[theirs] for theirs, ours in _GLM_KEYS.items() if values.get(theirs) is not None}
    rope = {**values, **_rope(values)}
    kind = rope.get("rope_type") or "default"
    if kind not in ("default", "linear"):
        raise CheckpointError(f"config.json: rope_type is {kind!r}; only default and linear are known here")
    ends = values.get("eos_token_id", 2)
    assert isinstance(weights, Weights), weights
    return {
        **told,
        "generation": _tell(values, weights.files[0].parent).generation,
        "rotary_base": rope.get("rope_theta", ROTARY_BASE),
        "rotary_share": rope.get("partial_rotary_factor", 0.5),
        "position_divisor": rope.get("factor", 1.0) if kind == "linear" else 1.0,
        "end_ids": tuple(ends) if isinstance(ends, list) else (ends,),
    }


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """What version 4 (rope_scaling, type) and 5 (rope_parameters, rope_type) say of the rotation.

    Raises: CheckpointError where they differ, or say what is not computed here.
    """
    told: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(stated := values.get(name) or {}, Mapping):
            raise CheckpointError(f"config.json: {name} is {stated!r:.40}, expected an object")
        _ROPE_KEYS.check(stated, f"config.json: {name}")
        for key, value in stated.items():
            ours = "rope_type" if key == "type" else key
            if told.setdefault(ours, value) != value:
                raise CheckpointError(
                    f"config.json: {name} says {key} {value!r:.40}, but it is {told[ours]!r:.40} in the same file "
                    "(rope_scaling is version 4 of transformers, rope_parameters version 5); leave the right one"
                )
    return told


def _write_glm(config: ChatGlm2Config) -> dict[str, Any]:
    """A GlmConfig that versions 4.46 to 5 of transformers read.

    Raises: CheckpointError for what it cannot express.
    """
    _check_expressible(config)
    rope: dict[str, Any] = {"rope_theta": config.rotary_base, "partial_rotary_factor": config.rotary_share}
    kind: dict[str, Any] = {"rope_type": "default"}
    if config.position_divisor != 1:
        kind = {"rope_type": "linear", "factor": config.position_divisor}
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        **{theirs: getattr(config, ours) for theirs, ours in _GLM_KEYS.items()},
        **rope,
        **({"rope_scaling": kind} if config.position_divisor != 1 else {}),
        "rope_parameters": {**rope, **kind},
        "eos_token_id": config.end_ids[0] if len(config.end_ids) == 1 else list(config.end_ids),
        "bos_token_id": 1 if config.generation != "glm4" else None,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        GENERATION_KEY: config.generation,
    }


def _write_gguf_config(config: ChatGlm2Config) -> dict[str, Any]:
    """There is no JSON beside a GGUF file.

    Raises: CheckpointError for what it cannot express.
    """
    _check_expressible(config, "llama.cpp's chatglm")
    gguf.shape_values(config)
    return {}


def _check_expressible(config: ChatGlm2Config, who: str = "GlmForCausalLM") -> None:
    reasons = {
        "LayerNorm instead of RMSNorm": config.norm != "rms",
        "no final norm": not config.has_final_norm,
        "biases on all linears": config.linear_bias,
        "residuals after the norm": config.residual_after_norm,
        "a head for labels (that of GlmForSequenceClassification has no bias)": bool(config.labels),
    }
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise CheckpointError(f"{who} cannot express this model: {', '.join(found)}; write another layout")


def _turned_keys(config: ChatGlm2Config, keys: torch.Tensor, distance: int) -> torch.Tensor:
    """Keys that stand a distance further on: what a query scores with one depends on how far apart both are."""
    import torch

    from hanlin.layers.rotary import rotate_pairs

    from .model import rotation

    exact = replace(config, half_rotary=False)
    cosine, sine = rotation(exact, torch.tensor([[distance]]), keys.dtype)
    return rotate_pairs(keys, cosine.flatten(), sine.flatten())


def _write_original(bits: int = 0) -> Callable[[ChatGlm2Config], dict[str, Any]]:
    def write(config: ChatGlm2Config) -> dict[str, Any]:
        return {**to_original(config), **({"quantization_bit": bits} if bits else {})}

    return write


def _original(
    title: str, rules: Callable[[ChatGlm2Config], list[Rule]], read_config: _ReadConfig = _read_original, bits: int = 0
) -> Format:
    return Format(
        title=title,
        rules=rules,
        read_config=read_config,
        write_config=_write_original(bits),
        config_keys=ORIGINAL_KEYS,
        remark=_remark,
        dtype_key="torch_dtype",
        prefix=_PREFIX,
        shard_bytes=_SHARD_BYTES,
        tokenizer_files=_TOKENIZER_FILES,
        refuse=_refuse_strangers,
        # That of the Python files beside these weights; packed ones are no linears that PEFT knows.
        peft=None if read_config is _read_quantised else "CAUSAL_LM",
    )


def _gguf(title: str, **others: Any) -> Format:
    return Format(
        title=title,
        rules=gguf.rules,
        read_config=gguf.refuse_reading,
        write_config=_write_gguf_config,
        pack=gguf.write,
        packings=PACKINGS,
        library="gguf",
        **others,
    )


FORMATS = {
    "original": _original("THUDM/chatglm2-6b and its kin: .bin shards with index, or safetensors", _original_rules),
    "huggingface": Format(
        title="transformers' native GlmForCausalLM: safetensors",
        rules=_glm_rules,
        read_config=_read_glm,
        write_config=_write_glm,
        config_keys=_GLM_CONFIG_KEYS,
        companions=write_companions,
        remark=_remark,
        dtype_key="torch_dtype",
        weights_file="model.safetensors",
        shard_bytes=_SHARD_BYTES,
        tokenizer_files=_TOKENIZER_FILES,
        peft="CAUSAL_LM",
        prefix_keys=_turned_keys,
    ),
    # Both kinds are called alike; how they are packed is told from their shapes.
    "quantized": _original(
        "THUDM/chatglm2-6b-int4, -int8: read only (write int8 or int4)", _quantised_rules(None), _read_quantised
    ),
    "int8": _original("as quantized, 8 bits", _quantised_rules(8), _read_quantised, bits=8),
    "int4": _original("as quantized, 4 bits", _quantised_rules(4), _read_quantised, bits=4),
    "gguf": _gguf("llama.cpp's GGUF, one file; write only", is_file=True),
    "ollama": _gguf(
        "Ollama's Modelfile beside a GGUF file; write only",
        weights_file=gguf.MODEL_FILE,
        companions=gguf.write_modelfile,
    ),
}
