"""CPM-1's tokenizer for transformers (`AutoTokenizer.from_pretrained(folder, trust_remote_code=True)`).

This file lies in a folder that Hanlin wrote and needs nothing of it: `pip install transformers sentencepiece jieba`.
The words that jieba finds are parted by blanks, real blanks and line breaks become visible letters, then sentencepiece
cuts. No tokenizer.json can do the first step, and transformers' CpmTokenizer leaves it out.
"""

# Hanlin copies this file and never imports it, so transformers may stand at the top.
from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, ClassVar

import jieba
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

_VISIBLE = {" ": "\u2582", "\n": "\u2583"}


class Cpm1HubTokenizer(PreTrainedTokenizer):
    """Texts <-> ids; special tokens are never read out of texts."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **settings: Any) -> None:
        jieba.setLogLevel(logging.WARNING)
        self.vocab_file = vocab_file
        self.pieces = SentencePieceProcessor(model_file=vocab_file)
        super().__init__(**{**settings, "split_special_tokens": True})

    @property
    def vocab_size(self) -> int:
        return self.pieces.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.pieces.id_to_piece(id): id for id in range(self.vocab_size)}

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}spiece.model"
        if not target.exists() or not target.samefile(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        text = "".join(tokens).replace("\u2581", "").replace(" ", "")
        for white, letter in _VISIBLE.items():
            text = text.replace(letter, white)
        return text

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        words = " ".join(word.translate(str.maketrans(_VISIBLE)) for word in jieba.cut(text))
        return [self.pieces.id_to_piece(id) for id in self.pieces.encode(words)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index)
