"""A vocabulary and a base folder of a tiny CPM-Bee with random weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from hanlin.formats.files import write_safetensors
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee

SPECIALS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
LETTERS = "床前明月光"
SMALL = CpmBeeConfig(hidden_size=8, num_layers=1, num_heads=2, head_dim=4, ffn_size=8)


def write_vocab(path: Path, letters: str = LETTERS) -> int:
    """Write the specials and some letters; returns how many tokens they are."""
    tokens = [*SPECIALS, *dict.fromkeys(letters)]
    path.write_text("\n".join(tokens) + "\n", "utf-8")
    return len(tokens)


def write_base(folder: Path, letters: str = LETTERS) -> Path:
    """Write a folder that `model.base` may name, and return it."""
    folder.mkdir()
    config = replace(SMALL, vocab_size=write_vocab(folder / "vocab.txt", letters))
    (folder / "config.json").write_text(json.dumps({"family": "cpm_bee", **asdict(config)}), "utf-8")
    torch.manual_seed(0)
    weights = {name: torch.randn(weight.shape) / 2 for name, weight in CpmBee(config).named_parameters()}
    write_safetensors(folder / "model.safetensors", weights)
    return folder
