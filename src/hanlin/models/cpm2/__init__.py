"""CPM-2: an encoder-decoder of 11 billion parameters, and its mixture of experts of 198 billion."""

from __future__ import annotations

from pathlib import Path

from hanlin.models.family import BeamVariant, Family

from .config import SIZES, Cpm2Config
from .formats import FORMATS
from .processor import Cpm2Processor
from .record import Cpm2Options
from .tokenizer import Cpm2Tokenizer


def _model() -> type:
    from .model import Cpm2

    return Cpm2


def _tokenizer(path: Path) -> Cpm2Tokenizer:
    return Cpm2Tokenizer.load(path)


family = Family(
    name="cpm2",
    title="CPM-2",
    config=Cpm2Config,
    model=_model,
    tokenizer=_tokenizer,
    processor=Cpm2Processor,
    options=Cpm2Options,
    formats=FORMATS,
    unwritable=dict.fromkeys(
        ("gguf", "ollama"),
        "llama.cpp computes its T5, but none of its tokenizers gives CPM-2's ids, since jieba cuts the texts first",
    ),
    sizes=SIZES,
    lora_targets=("query", "value"),
    beam_variant=BeamVariant(ended_beams_leave=True, length_includes_start=True),
)
