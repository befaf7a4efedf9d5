"""CPM-Bee: a decoder whose prompt sees itself both ways, fed with dicts that hold their answer under "<ans>"."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hanlin.models.family import Family

from .ccpm import read_ccpm
from .config import SIZES, CpmBeeConfig
from .formats import FORMATS
from .processor import CpmBeeOptions, CpmBeeProcessor
from .tokenizer import CpmBeeTokenizer


def _model() -> type:
    from .model import CpmBee

    return CpmBee


def _tokenizer(path: Path) -> CpmBeeTokenizer:
    return CpmBeeTokenizer.load(path)


family = Family(
    name="cpm_bee",
    title="CPM-Bee",
    config=CpmBeeConfig,
    model=_model,
    tokenizer=_tokenizer,
    processor=CpmBeeProcessor,
    options=CpmBeeOptions,
    formats=FORMATS,
    unwritable=dict.fromkeys(
        ("gguf", "ollama"), "llama.cpp has no architecture with CPM-Bee's position bias of segments and their relations"
    ),
    sizes=SIZES,
    lora_targets=("query", "value"),
    raw={"ccpm": read_ccpm, "ccpm-text": partial(read_ccpm, answers_are_texts=True)},
)
