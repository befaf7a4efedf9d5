"""What transformers, and the programs that read its folders (vLLM, SGLang), want beside the weights of a
`GlmForCausalLM`: a fast tokenizer with the same ids, the chat template, and where an answer ends.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hanlin.core.errors import DataError
from hanlin.core.files import read_json_object, write_json
from hanlin.tokens.tokenizer_json import tokenizer_json

from .chat_template import chat_template
from .config import ChatGlm2Config
from .templates import RoleTemplate, make_template
from .tokenizer import SETTINGS_FILE, ChatGlm2Tokenizer, byte_ranks_in

log = logging.getLogger(__name__)

_MARKED = {"sop": "<sop>", "eop": "<eop>"}
"""Names that are words of ordinary texts: special tokens are found in texts there."""


def write_companions(folder: Path, config: ChatGlm2Config) -> None:
    """Write them into a folder that has the weights, config.json and the tokenizer's own files.

    Raises: DataError for a damaged tokenizer.
    """
    tokenizer = tokenizer_beside(folder, config)
    if tokenizer is None:
        log.warning("%s: written without a tokenizer, since none lies beside the source; name one with --vocab", folder)
        return
    specials = marked_specials(tokenizer)
    end = next(iter(specials))
    try:
        fast = tokenizer_json(tokenizer.pieces, specials, ("[gMASK]", "<sop>"))
    except DataError as error:
        log.warning("%s: written without tokenizer.json: %s", folder, error)
        return
    ends = stop_ids(tokenizer, config)
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    write_json(folder / SETTINGS_FILE, _settings(config, end, list(specials)))
    stops = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": config.pad_id}
    write_json(folder / "generation_config.json", stops)
    write_json(folder / "config.json", read_json_object(folder / "config.json") | stops)


def tokenizer_beside(folder: Path, config: ChatGlm2Config) -> ChatGlm2Tokenizer | None:
    """The tokenizer in a folder, with roles where the model's template has them; None where there is none.

    Raises: DataError.
    """
    if byte_ranks_in(folder) is None:
        return None
    tokenizer = ChatGlm2Tokenizer.load(folder)
    return tokenizer.with_roles() if isinstance(make_template("auto", config.generation), RoleTemplate) else tokenizer


def marked_specials(tokenizer: ChatGlm2Tokenizer) -> dict[str, int]:
    """The special tokens, that which ends an answer first, by names that are no words of ordinary texts."""
    end = "<|endoftext|>" if tokenizer.is_glm4 else "</s>"
    return {end: tokenizer.end} | {_MARKED.get(name, name): id for name, id in tokenizer.specials.items()}


def stop_ids(tokenizer: ChatGlm2Tokenizer, config: ChatGlm2Config) -> list[int]:
    """All ids that end an answer."""
    template = make_template("auto", config.generation)
    return list(dict.fromkeys((*config.end_ids, *template.ends(tokenizer))))


def _settings(config: ChatGlm2Config, end: str, specials: list[str]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end if config.generation == "glm4" else "<unk>",
        "additional_special_tokens": [name for name in specials if name != end],
        "model_max_length": config.max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": chat_template(config.generation),
    }
