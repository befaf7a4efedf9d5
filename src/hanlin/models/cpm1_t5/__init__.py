"""The T5 of CPM-1's pretraining program: an encoder-decoder that gives back spans taken out of texts."""

from __future__ import annotations

from pathlib import Path

from hanlin.models.family import Family
from hanlin.tokens.vocabulary import VOCAB_FILE
from hanlin.tokens.wordpiece import WordPiece

from .config import SIZES, Cpm1T5Config
from .formats import FORMATS
from .processor import Cpm1T5Options, Cpm1T5Processor


def _model() -> type:
    from .model import Cpm1T5

    return Cpm1T5


def _tokenizer(path: Path) -> WordPiece:
    return WordPiece.load(path / VOCAB_FILE if path.is_dir() else path)


family = Family(
    name="cpm1_t5",
    title="CPM-1-Pretrain's T5",
    config=Cpm1T5Config,
    model=_model,
    tokenizer=_tokenizer,
    processor=Cpm1T5Processor,
    options=Cpm1T5Options,
    formats=FORMATS,
    unwritable={
        **dict.fromkeys(("gguf", "ollama"), "llama.cpp has no architecture with learned positions and shared norms"),
        "huggingface": "no class of transformers computes it: positions are a learned table, norms have biases, and a "
        "decoder block uses one norm twice, of which transformers' T5 has nothing",
    },
    sizes=SIZES,
    lora_targets=("query", "key", "value"),
)
