"""A tiny model in the layout of THUDM/chatglm2-6b, with a small vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from chatglm2_pieces import small_pieces

from hanlin.core.manifest import MANIFEST
from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer


def write_original(folder: Path) -> Path:
    """Write the folder and return it."""
    tokenizer = ChatGlm2Tokenizer(small_pieces())
    config = ChatGlm2Config(
        vocab_size=tokenizer.vocab_size + 7,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        head_dim=8,
        ffn_size=64,
        max_length=256,
    )
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    base = folder.with_name(f"{folder.name}.base")
    save_base(base, family, config, dict(model.named_parameters()), tokenizer)
    convert(base, family, None, "original", folder, tokenizer=tokenizer)
    shutil.rmtree(base)
    (folder / MANIFEST).unlink()  # the originals have none
    return folder
