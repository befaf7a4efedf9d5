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
    if byte_ranks_in(folder) is None:
        log.warning("%s: written without a tokenizer, since none lies beside the source; name one with --vocab", folder)
        return
    template = make_template("auto", config.generation)
    tokenizer = ChatGlm2Tokenizer.load(folder)
    if isinstance(template, RoleTemplate):
        tokenizer = tokenizer.with_roles()
    end = "<|endoftext|>" if tokenizer.is_glm4 else "</s>"
    specials = {end: tokenizer.end} | {_MARKED.get(name, name): id for name, id in tokenizer.specials.items()}
    try:
        fast = tokenizer_json(tokenizer.pieces, specials, ("[gMASK]", "<sop>"))
    except DataError as error:
        log.warning("%s: written without tokenizer.json: %s", folder, error)
        return
    ends = list(dict.fromkeys((*config.end_ids, *template.ends(tokenizer))))
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    write_json(folder / SETTINGS_FILE, _settings(config, end, list(specials)))
    stops = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": config.pad_id}
    write_json(folder / "generation_config.json", stops)
    write_json(folder / "config.json", read_json_object(folder / "config.json") | stops)


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
