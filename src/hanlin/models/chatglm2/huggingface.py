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

from .chat_template import chat_template, is_ours
from .config import ChatGlm2Config
from .record import ChatGlm2Options, template_of
from .templates import RoleTemplate, Template
from .tokenizer import SETTINGS_FILE, ChatGlm2Tokenizer, byte_ranks_in

log = logging.getLogger(__name__)

_MARKED = {"sop": "<sop>", "eop": "<eop>"}
"""Names that are words of ordinary texts: special tokens are found in texts there."""


def write_companions(folder: Path, config: ChatGlm2Config, options: ChatGlm2Options | None) -> None:
    """Write them into a folder that has the weights, config.json and the tokenizer's own files.

    options: those of the samples, whose template the folder gets; None: the model's own.
    Raises: DataError for a damaged tokenizer; CheckpointError for a template that cannot be written.
    """
    template, written = template_to_write(folder, config, options)
    tokenizer = tokenizer_beside(folder, template)
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
    ends = stop_ids(tokenizer, config, template)
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    write_json(folder / SETTINGS_FILE, _settings(config, end, list(specials), written))
    stops = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": config.pad_id}
    write_json(folder / "generation_config.json", stops)
    write_json(folder / "config.json", read_json_object(folder / "config.json") | stops)


def template_to_write(folder: Path, config: ChatGlm2Config, options: ChatGlm2Options | None) -> tuple[Template, str]:
    """The template of the options, and in Jinja; that it is another than an export had from which the tokenizer's files
    in the folder come, is said: options are not known of an export.

    Raises: CheckpointError for a template that cannot be written.
    """
    template = template_of(options or ChatGlm2Options(), config.generation)
    written = chat_template(template, config.generation)
    settings = folder / SETTINGS_FILE
    former = read_json_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(former, str) and is_ours(former) and former != written:
        log.warning(
            "the chat template of the source is not that of data.options, which is written; convert from the run, or "
            "name its data.options.template and data.options.system again"
        )
    return template, written


def tokenizer_beside(folder: Path, template: Template) -> ChatGlm2Tokenizer | None:
    """The tokenizer in a folder, with roles where the template has them; None where there is none.

    Raises: DataError.
    """
    if byte_ranks_in(folder) is None:
        return None
    tokenizer = ChatGlm2Tokenizer.load(folder)
    return tokenizer.with_roles() if isinstance(template, RoleTemplate) else tokenizer


def marked_specials(tokenizer: ChatGlm2Tokenizer) -> dict[str, int]:
    """The special tokens, that which ends an answer first, by names that are no words of ordinary texts."""
    end = "<|endoftext|>" if tokenizer.is_glm4 else "</s>"
    return {end: tokenizer.end} | {_MARKED.get(name, name): id for name, id in tokenizer.specials.items()}


def stop_ids(tokenizer: ChatGlm2Tokenizer, config: ChatGlm2Config, template: Template) -> list[int]:
    """All ids that end an answer."""
    return list(dict.fromkeys((*config.end_ids, *template.ends(tokenizer))))


def _settings(config: ChatGlm2Config, end: str, specials: list[str], template: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end if config.generation == "glm4" else "<unk>",
        "additional_special_tokens": [name for name in specials if name != end],
        "model_max_length": config.max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": template,
    }
