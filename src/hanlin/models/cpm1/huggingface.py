"""What transformers wants beside the weights of a `GPT2LMHeadModel`: a tokenizer with our ids, and where a text ends.

The released models' texts are cut by jieba first, which no tokenizer.json can do, so none is written; the folder has
`spiece.model` and the few lines of Python that transformers runs with `trust_remote_code=True`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hanlin.core.errors import CheckpointError, DataError
from hanlin.core.files import read_json_object, write_json
from hanlin.models.common.text_record import EOD, PAD

from .byte_pairs import BytePairTokenizer
from .config import Cpm1Config
from .tokenizer import HUB_PIECES_FILE, NAMES_FILE, PIECES_FILE, Cpm1Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

_CODE = "tokenization_cpm1.py"
_GPT2_END = "<|endoftext|>"


def check_expressible(config: Cpm1Config) -> None:
    """Raises: CheckpointError for a model that GPT2LMHeadModel would compute otherwise."""
    reasons = {
        "residuals after the norm": config.residual_after_norm,
        f"{config.num_heads} heads of {config.head_dim} in a hidden size of {config.hidden_size}": (
            config.num_heads * config.head_dim != config.hidden_size
        ),
    }
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise CheckpointError(f"GPT2LMHeadModel cannot express this model: {', '.join(found)}; write another layout")


def write_companions(folder: Path, config: Cpm1Config, options: object) -> None:
    """Write them into a folder that has the weights, config.json and the tokenizer's own files, if it has them."""
    del options
    try:
        tokenizer = load_tokenizer(folder)
    except DataError as error:
        log.warning("written without a tokenizer; name one with --vocab: %s", error)
        return
    ids = {"eos_token_id": tokenizer.find(EOD), "pad_token_id": tokenizer.find(PAD)}
    common = {
        "model_max_length": config.max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if isinstance(tokenizer, Cpm1Tokenizer):
        write_json(folder / "tokenizer_config.json", _pieces_settings() | common)
        _bring_pieces(folder, tokenizer)
    elif isinstance(tokenizer, BytePairTokenizer):
        end = EOD if ids["eos_token_id"] is not None else _GPT2_END
        ids = dict.fromkeys(ids, tokenizer.find(end))
        ends = dict.fromkeys(("eos_token", "pad_token", "unk_token", "bos_token"), end)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **ends, **common})
    else:
        log.warning(
            "%s: jieba's words cut by a list of tokens are known to no class of transformers; encode texts with "
            "hanlin and hand over the ids",
            folder,
        )
    surplus = list(range(tokenizer.vocab_size, config.vocab_size))  # rows that fill the embedding up are no answers
    write_json(folder / "generation_config.json", ids | ({"suppress_tokens": surplus} if surplus else {}))
    write_json(folder / "config.json", read_json_object(folder / "config.json") | {"bos_token_id": None} | ids)


def _pieces_settings() -> dict[str, Any]:
    return {
        "tokenizer_class": "Cpm1HubTokenizer",
        "auto_map": {"AutoTokenizer": [f"{_CODE.removesuffix('.py')}.Cpm1HubTokenizer", None]},
        "eos_token": EOD,
        "pad_token": PAD,
        "unk_token": "<unk>",
    }


def _bring_pieces(folder: Path, tokenizer: Cpm1Tokenizer) -> None:
    """Without vocab.json: transformers would take it for a GPT-2's byte pairs."""
    (folder / HUB_PIECES_FILE).write_bytes(tokenizer.pieces.model)
    (folder / _CODE).write_bytes(Path(__file__).with_name(_CODE).read_bytes())
    for name in (PIECES_FILE, NAMES_FILE):
        (folder / name).unlink(missing_ok=True)
