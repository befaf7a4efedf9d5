"""The GLM family in llama.cpp's GGUF, architecture "chatglm": tensors, metadata, vocabulary, and Ollama's Modelfile.

Names and layouts are those of llama.cpp's conversion/chatglm.py and src/models/chatglm.cpp. Its vocabularies of this
family are of two kinds: sentencepiece's byte pairs ("llama", ChatGLM2 and 3) and byte strings ("gpt2", GLM-4). Special
tokens are found in texts there, and text after one begins with a "▁", as with our tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import CheckpointError, DataError
from hanlin.formats.gguf_file import write_gguf
from hanlin.formats.rules import Rename, Rule, SplitRows
from hanlin.tokens.byte_ranks import ByteRanks
from hanlin.tokens.sentencepiece_file import PieceKind, read_file
from hanlin.tokens.tokenizer_json import tokenizer_json

from .chat_template import round_pieces
from .config import ChatGlm2Config
from .huggingface import marked_specials, stop_ids, template_to_write, tokenizer_beside
from .record import ChatGlm2Options, template_of
from .templates import GAP, SYSTEM_GAP, RoleTemplate, Template, TextTemplate
from .tokenizer import GLM4_PATTERN, ChatGlm2Tokenizer

if TYPE_CHECKING:
    import torch

_ARCHITECTURE = "chatglm"
_LAYER = "blk.{i}."
_NAMES = {
    "token_embd": "embedding",
    "output_norm": "norm",
    "output": "head",
    f"{_LAYER}attn_norm": "blocks.{i}.attention.norm",
    f"{_LAYER}attn_output": "blocks.{i}.attention.output",
    f"{_LAYER}ffn_norm": "blocks.{i}.ffn.norm",
    f"{_LAYER}ffn_down": "blocks.{i}.ffn.down",
}
_KINDS: dict[PieceKind, int] = {
    "normal": 1, "unknown": 2, "control": 3, "user-defined": 4, "unused": 5, "byte": 6
}  # fmt: skip
_STOP_KEYS = ("eos", "eot", "eom")
"""llama.cpp ends an answer at each of these."""
MODEL_FILE, MODELFILE = "model.gguf", "Modelfile"
_MOST_ROUNDS = 32


def rules(config: ChatGlm2Config) -> list[Rule]:
    """The table of names."""
    heads = [count * config.head_dim for count in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    parts = [f"blocks.{{i}}.attention.{name}" for name in ("query", "key", "value")]
    fused = [
        SplitRows(f"{_LAYER}attn_qkv.{part}", [f"{one}.{part}" for one in parts], heads) for part in ("weight", "bias")
    ]
    gated = SplitRows(f"{_LAYER}ffn_up.weight", ["blocks.{i}.ffn.gate.weight", "blocks.{i}.ffn.up.weight"])
    return [*(Rename(f"{theirs}.weight", f"{ours}.weight") for theirs, ours in _NAMES.items()), *fused, gated]


def refuse_reading(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Raises: CheckpointError, always."""
    del values, weights
    raise CheckpointError(
        "a GGUF file is written for other programs and not read; take the weights that it was made of"
    )


def shape_values(config: ChatGlm2Config) -> dict[str, Any]:
    """The metadata of a shape.

    Raises: CheckpointError for what llama.cpp does not compute.
    """
    if config.num_heads * config.head_dim != config.hidden_size:
        raise CheckpointError(
            f"llama.cpp's chatglm has heads as wide as the hidden size together; these are {config.num_heads} of "
            f"{config.head_dim} in {config.hidden_size}"
        )
    turned = int(config.head_dim * config.rotary_share)
    if turned < 2 or turned % 2:
        raise CheckpointError(
            f"llama.cpp turns pairs of a head's numbers; here {turned} of {config.head_dim} are turned (rotary_share)"
        )
    scaling = {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": float(config.position_divisor)}
    return {
        "{arch}.context_length": config.max_length,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.ffn_size,
        "{arch}.block_count": config.num_layers,
        "{arch}.attention.head_count": config.num_heads,
        "{arch}.attention.head_count_kv": config.num_kv_heads,
        "{arch}.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "{arch}.rope.dimension_count": turned,
        "{arch}.rope.freq_base": float(config.rotary_base),
        **(scaling if config.position_divisor != 1 else {}),
    }


def write(
    path: Path,
    beside: Path,
    config: ChatGlm2Config,
    tensors: Mapping[str, torch.Tensor],
    packing: str | None,
    options: ChatGlm2Options | None,
) -> None:
    """Write the file. beside: the folder that has the tokenizer's own files; options: as in huggingface.py.

    Raises: CheckpointError, DataError.
    """
    template, written = template_to_write(beside, config, options)
    tokenizer = tokenizer_beside(beside, template)
    if tokenizer is None:
        raise CheckpointError("no tokenizer lies beside the weights, and a GGUF file holds one; name it with --vocab")
    values = {
        "general.name": f"{config.generation}, written by hanlin",
        "general.languages": ["zh", "en"],
        **shape_values(config),
        **_vocabulary(tokenizer, config.vocab_size),
        **_special_ids(stop_ids(tokenizer, config, template), tokenizer, config),
        "tokenizer.chat_template": written,
    }
    write_gguf(path, _ARCHITECTURE, values, tensors, packing)


def write_modelfile(folder: Path, config: ChatGlm2Config, options: ChatGlm2Options | None) -> None:
    """Write what `ollama create NAME -f Modelfile` reads beside the GGUF file."""
    template = template_of(options or ChatGlm2Options(), config.generation)
    stops = "".join(f'PARAMETER stop "{name}"\n' for name in _stop_words(config, template))
    text = f'FROM ./{MODEL_FILE}\nTEMPLATE """{_go_template(template, config.generation)}"""\n{stops}'
    (folder / MODELFILE).write_text(f"{text}PARAMETER num_ctx {min(config.max_length, 8192)}\n", encoding="utf-8")


def _vocabulary(tokenizer: ChatGlm2Tokenizer, size: int) -> dict[str, Any]:
    """size: rows of the embedding; those without a token are filled up.

    Raises: DataError for a vocabulary whose ids llama.cpp cannot give.
    """
    specials = marked_specials(tokenizer)
    fast = tokenizer_json(tokenizer.pieces, specials, ())  # refuses what has no form of pairs
    if isinstance(tokenizer.pieces, ByteRanks):
        if tokenizer.pieces.pattern != GLM4_PATTERN:
            raise DataError("llama.cpp cuts texts for byte strings by GLM-4's pattern alone")
        rows = {id: (token, 0.0, _KINDS["normal"]) for token, id in fast["model"]["vocab"].items()}
        kind = {"model": "gpt2", "pre": "chatglm-bpe", "merges": [" ".join(pair) for pair in fast["model"]["merges"]]}
    else:
        pieces = read_file(tokenizer.pieces.model).pieces
        rows = {id: (piece.text, piece.score, _KINDS[piece.kind]) for id, piece in enumerate(pieces)}
        kind = {"model": "llama", "pre": "default", "add_space_prefix": True, "remove_extra_whitespaces": False}
    rows |= {id: (name, 0.0, _KINDS["control"]) for name, id in specials.items()}
    rows |= {id: (f"[PAD{id}]", 0.0, _KINDS["unused"]) for id in range(size) if id not in rows}
    tokens, scores, kinds = (list(column) for column in zip(*(rows[id] for id in range(size)), strict=True))
    listed = {"tokens": tokens, "token_type": kinds, **({"scores": scores} if kind["model"] == "llama" else {})}
    return {f"tokenizer.ggml.{name}": value for name, value in {**kind, **listed}.items()}


def _special_ids(ends: list[int], tokenizer: ChatGlm2Tokenizer, config: ChatGlm2Config) -> dict[str, Any]:
    if len(ends) > len(_STOP_KEYS):
        raise CheckpointError(f"llama.cpp has places for {len(_STOP_KEYS)} ids that end an answer, found {ends}")
    ids = dict(zip(_STOP_KEYS, ends, strict=False)) | {"padding": config.pad_id}
    ids |= {} if tokenizer.is_glm4 else {"bos": 1, "unknown": 0}
    named = {f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items()}
    return named | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}


def _stop_words(config: ChatGlm2Config, template: Template) -> list[str]:
    roles = ["<|user|>", "<|observation|>"] if isinstance(template, RoleTemplate) else []
    return ["<|endoftext|>" if config.generation == "glm4" else "</s>", *roles]


def _go_template(template: Template, generation: str) -> str:
    """The template in the language of Go, for questions, answers and what the system says.

    It cannot refuse a message, as the chat template does: where there is no place for what the system says, that stands
    in front of the first question.
    """
    if isinstance(template, RoleTemplate):
        gap = "" if generation == "glm4" else " "
        role = '{{ if eq .Role "tool" }}observation{{ else }}{{ .Role }}{{ end }}'
        return f"[gMASK]<sop>{{{{ range .Messages }}}}<|{role}|>\n{gap}{{{{ .Content }}}}{{{{ end }}}}<|assistant|>"
    assert isinstance(template, TextTemplate), template
    # Go's templates cannot count; with a system message a question is one place further behind.
    numbers = "{{ else ".join(f"if le $i {2 * number + 1} }}}}{number + 1}" for number in range(_MOST_ROUNDS))
    first = f"{{{{ if eq $i 1 }}}}{{{{ (index $.Messages 0).Content }}}}{SYSTEM_GAP}{{{{ end }}}}"
    values = {"question": f"{first}{{{{ $m.Content }}}}", "round": f"{{{{ {numbers}{{{{ end }}}}", None: ""}
    asked = "".join(f"{literal}{values[column]}" for literal, column in round_pieces(template))
    said = f'{{{{ else if eq $m.Role "assistant" }}}}{{{{ $m.Content }}}}{GAP}'
    turn = f'{{{{ if eq $m.Role "user" }}}}{asked}{said}{{{{ end }}}}'
    return f"[gMASK]<sop>{template.before}{{{{ range $i, $m := .Messages }}}}{turn}{{{{ end }}}}"
